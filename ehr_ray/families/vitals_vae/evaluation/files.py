"""Files of the vitals VAE for other programs: latents, what each branch draws, and their metadata.

N patients, Z latent, H hours, V vitals.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput
from ehr_ray.events.grid import scales
from ehr_ray.families.vitals_vae.evaluation.curves import Grids, References
from ehr_ray.storage.files import new_file, write_parquet, write_text

LATENTS: Final = "vae_latents.h5"
COMPONENTS: Final = "vae_multiscale_components.h5"
METADATA: Final = "vae_metadata.json"
FPCA_SCORES: Final = "fpca_scores.parquet"
FPCA_COMPONENTS: Final = "fpca_components.h5"
PHENOTYPES: Final = "phenotypes.parquet"


def write_latents(
    target: Path, splits: Mapping[str, SplitPredictions], given: SuiteInput
) -> tuple[str, ...]:
    """Write the files there is content for, each by rename; return their names, latents first."""
    target.mkdir(parents=True, exist_ok=True)
    written = [LATENTS]
    shapes = write_h5(target / LATENTS, latents(splits))
    if "components" in given.judged.tables:
        found = components(given)
        shapes |= write_h5(target / COMPONENTS, found)
        written.append(COMPONENTS)
    write_text(target / METADATA, json.dumps(metadata(given, shapes), indent=1) + "\n")
    return (*written, METADATA)


def latents(splits: Mapping[str, SplitPredictions]) -> dict[str, NDArray[Any]]:
    """Return `mu`, `logvar` [N, Z], `recon_error`, `n_obs`, `kl`, `patient_ids`, `split` [N].

    Of every row that the splits were given with: where an evaluation reads a sample, of that alone.
    `patient_index` is `patient_ids` by its other name. Codes have
    `codes` [N, G] in place of `logvar` and `kl`.
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
    result["patient_ids"] = result["patient_index"] = ids.astype("S")
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


def write_fpca(
    target: Path, splits: Mapping[str, SplitPredictions], references: References, given: SuiteInput
) -> tuple[str, ...]:
    """Write the FPCA scores of every patient with a grid, and the components; return the names."""
    target.mkdir(parents=True, exist_ok=True)
    tables = [fpca_scores(name, part, references, given) for name, part in splits.items()]
    write_parquet(pa.concat_tables(tables), target / FPCA_SCORES)
    write_h5(target / FPCA_COMPONENTS, fpca_components(references, given))
    return FPCA_SCORES, FPCA_COMPONENTS


def fpca_scores(
    split: str, part: SplitPredictions, references: References, given: SuiteInput
) -> pa.Table:
    """Return `subject_id`, `split`, `{vital}_fpc1`, ... of imputed curves, and `{vital}_obs_pct`.

    The last is the percentage of the vital sign's hours that were observed.
    """
    names = [vital.name for vital in given.model.vitals]
    grids = Grids.of(part, len(names))
    scores = references.scores(grids.value, grids.observed).reshape(len(grids), len(names), -1)
    observed = 100 * grids.observed.mean(1)
    columns = {"subject_id": part.samples["subject_id"].to_numpy()[grids.sample]}
    columns["split"] = np.full(len(grids), split, object)
    for index, name in enumerate(names):
        for number, one in enumerate(scores[:, index].T, start=1):
            columns[f"{name}_fpc{number}"] = one.astype(np.float32)
    for index, name in enumerate(names):
        columns[f"{name}_obs_pct"] = observed[:, index].astype(np.float32)
    return pa.table(columns)


def fpca_components(references: References, given: SuiteInput) -> dict[str, NDArray[Any]]:
    """Return the components [V, K, H] of z-scores, their `mean` [V, H] and what they explain.

    A curve of imputed z-scores is near `mean + scores @ components`; times `spread` [V] plus
    `centre` [V] it is in the vital sign's unit.
    """
    functional, vitals = references.functional, given.model.vitals
    centre, spread = scales(vitals, given.vocabulary)
    first = given.model.first_hour
    return {
        "components": functional.components.astype(np.float32),
        "mean": functional.mean.astype(np.float32),
        "explained_variance_ratio": functional.explained.astype(np.float32),
        "centre": centre,
        "spread": spread,
        "vital_index": np.array([vital.name for vital in vitals], "S"),
        "hour_index": np.arange(first, first + given.model.num_hours, dtype=np.int32),
    }


def write_phenotypes(
    target: Path, subjects: NDArray[Any], split: str, labels: Mapping[str, NDArray[np.int64]]
) -> str:
    """Write the cluster of each patient in each representation, -1 in none; return the name."""
    target.mkdir(parents=True, exist_ok=True)
    columns = {name: found.astype(np.int32) for name, found in labels.items()}
    table = pa.table({"subject_id": subjects, "split": [split] * len(subjects), **columns})
    write_parquet(table, target / PHENOTYPES)
    return PHENOTYPES


def _array(table: pa.Table, name: str) -> NDArray[Any]:
    column = table[name].combine_chunks()
    if pa.types.is_list(column.type):
        return np.asarray(column.values.to_numpy()).reshape(len(table), -1)
    return np.asarray(column.to_numpy())


def write_h5(path: Path, arrays: Mapping[str, NDArray[Any]]) -> dict[str, list[int]]:
    """Write arrays by name; return the shape of each by `file/name`."""
    with new_file(path) as partial, h5py.File(partial, "w") as file:
        for name, array in arrays.items():
            packed = {"compression": "gzip"} if array.ndim > 1 else {}
            file.create_dataset(name, data=array, **packed)
    return {f"{path.name}/{name}": list(array.shape) for name, array in arrays.items()}
