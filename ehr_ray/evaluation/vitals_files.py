"""Files of the vitals VAE for other programs: latents, what each branch draws, and their metadata.

N patients, Z latent, H hours, V vitals.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ehr_ray.evaluation.suites import Part, SuiteInput
from ehr_ray.events.grid import scales

LATENTS: Final = "vae_latents.h5"
COMPONENTS: Final = "vae_multiscale_components.h5"
METADATA: Final = "vae_metadata.json"


def write(target: Path, splits: Mapping[str, Part], given: SuiteInput) -> tuple[str, ...]:
    """Write the files there is content for, each by rename; return their names, latents first."""
    target.mkdir(parents=True, exist_ok=True)
    written = [LATENTS]
    shapes = _write_h5(target / LATENTS, latents(splits))
    if "components" in given.judged.tables:
        found = components(given)
        shapes |= _write_h5(target / COMPONENTS, found)
        written.append(COMPONENTS)
    path = target / METADATA
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(metadata(given, shapes), indent=1) + "\n")
    os.replace(partial, path)
    return (*written, METADATA)


def latents(splits: Mapping[str, Part]) -> dict[str, NDArray[Any]]:
    """Return `mu`, `logvar` [N, Z], `recon_error`, `n_obs`, `kl`, `patient_index`, `split` [N].

    Of every patient of every split. Codes have `codes` [N, G] in place of `logvar` and `kl`.
    """
    names = {"embedding": "mu", "logvar": "logvar", "codes": "codes"}
    names |= {"recon_error": "recon_error", "n_obs": "n_obs", "kl_nats": "kl"}
    parts = list(splits.values())
    there = set(parts[0].samples.column_names)
    result = {
        new: np.concatenate([_array(part.samples, old) for part in parts])
        for old, new in names.items()
        if old in there
    }
    for name in {"n_obs", "codes"} & set(result):
        result[name] = result[name].astype(np.int32)
    ids = np.concatenate([part.samples["subject_id"].to_numpy() for part in parts])
    result["patient_index"] = ids.astype("S")
    sizes = [part.samples.num_rows for part in parts]
    result["split"] = np.repeat(np.array(list(splits), "S"), sizes)
    return result


def components(given: SuiteInput) -> dict[str, NDArray[Any]]:
    """Return each branch's curves and the merged ones in the vitals' units, [N, H, V] each."""
    table, vitals = given.judged.tables["components"], given.model.vitals
    result: dict[str, NDArray[Any]] = {
        name: _array(table, name).reshape(table.num_rows, -1, len(vitals))
        for name in table.column_names
        if name != "sample"
    }
    centre, spread = scales(vitals, given.vocabulary)
    merged = _array(given.judged.tables["grids"], "estimate")
    result["merged"] = (merged.reshape(table.num_rows, -1, len(vitals)) * spread + centre).astype(
        np.float32
    )
    subjects = given.judged.samples["subject_id"].to_numpy()
    result["patient_index"] = subjects[table["sample"].to_numpy()].astype("S")
    result["vital_index"] = np.array([vital.name for vital in vitals], "S")
    first = given.model.first_hour
    result["hour_index"] = np.arange(first, first + given.model.num_hours, dtype=np.int32)
    return result


def metadata(given: SuiteInput, shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return how the numbers came about: config, normalisation, splits, what the files hold."""
    centre, spread = scales(given.model.vitals, given.vocabulary)
    return {
        "model": dataclasses.asdict(given.model),
        "vitals": {
            vital.name: {"unit": vital.unit, "centre": float(c), "spread": float(s)}
            for vital, c, s in zip(given.model.vitals, centre, spread, strict=True)
        },
        "patients": {name: part.samples.num_rows for name, part in given.fit.items()}
        | {given.split: given.judged.samples.num_rows},
        "judged": given.split,
        "seed": given.seed,
        "datasets": dict(shapes),
        "load": "ehr_ray.load(<run>).model",
    }


def _array(table: pa.Table, name: str) -> NDArray[Any]:
    column = table[name].combine_chunks()
    if pa.types.is_list(column.type):
        return np.asarray(column.values.to_numpy()).reshape(len(table), -1)
    return np.asarray(column.to_numpy())


def _write_h5(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, list[int]]:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with h5py.File(partial, "w") as file:
            for name, array in arrays.items():
                packed = {"compression": "gzip"} if array.ndim > 1 else {}
                file.create_dataset(name, data=array, **packed)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return {f"{path.name}/{name}": list(array.shape) for name, array in arrays.items()}
