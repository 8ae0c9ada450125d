"""Files of one modality in HDF5: an embedding of 512 numbers a patient, or a slide of one.

Datasets are found anywhere in a file by the names published code gives them. N rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.modalities import WIDTH
from ehr_ray.events.truth import read_truth
from ehr_ray.storage import files

Floats = npt.NDArray[np.float32]

IDS: Final = ("patient_id", "patient_index_map", "patient_ids", "patientid", "patient")
EMBEDDINGS: Final = (
    "embedding_512",
    "embedding_mean_512",
    "text_combined_embedding_512",
    "features_mean",
    "embedding",
    "embeddings",
    "features",
    "feature",
)
QUALITIES: Final = ("quality_score", "quality", "modality_quality", "quality_scores")
PATCHES: Final = ("n_patches", "npatches", "n_patches_per_slide")
VARIANCES: Final = ("embedding_var_512",)
LABELS: Final = {"surv_5yr_label": "survival_5y", "rec_2yr_label": "recurrence_2y"}
"""Labels of a clinical file to tasks; 1 is alive, or recurrence, and -1 is unknown."""
_UNKNOWN: Final = (-1, "-1", "-1.0")


@dataclass(frozen=True, eq=False)
class ModalityFile:
    """Rows of one file, or its patients after `aggregate`.

    `ids` are normalised, `embedding` [N, 512], `quality` [N], `patches` [N], `variance` [N, 512] or
    None, `labels` by task, int8 [N]: 1, 0 or -1 for unknown. Without ids in the file the rows are
    not `named`, and their numbers, from 0, stand for them.
    """

    ids: list[str]
    embedding: Floats
    quality: Floats
    patches: npt.NDArray[np.float64] | None = None
    variance: Floats | None = None
    labels: Mapping[str, npt.NDArray[np.int8]] = field(default_factory=dict)
    named: bool = True


def normalize_pid(raw: Any) -> str:
    """Return the patient a name is of: its number, without zeros in front, else the name.

    >>> normalize_pid(b" 001"), normalize_pid("HN-0042_a"), normalize_pid("anna")
    ('1', '42', 'anna')
    """
    text = (raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)).strip()
    digits = re.search(r"\d+", text)
    return str(int(digits[0])) if digits else text


def normalized_ids(raw: Sequence[Any], path: Path) -> list[str]:
    """Return the patient of every row; InputError where two names would become one patient."""
    names = [x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x) for x in raw]
    seen: dict[str, str] = {}
    result = []
    for row, name in enumerate(n.strip() for n in names):
        patient = normalize_pid(name)
        other = seen.setdefault(patient, name)
        same = other == name or (other.isdigit() and name.isdigit())
        if not same:
            raise InputError(
                f"{path}: row {row + 1} would be the same patient as one of another name before "
                "it, for their numbers are the same; rename one"
            )
        result.append(patient)
    return result


def read_modality(path: Path) -> ModalityFile:
    """Return the rows of a file.

    InputError where it has no embedding 512 wide, or bad ids, where a dataset is not of as many
    rows, and for a label that is no truth value.
    """
    sets = read_all_datasets(path)
    embedding, parents = _embedding(sets, path)
    rows = len(embedding)
    ids = _ids(sets, rows, path, parents)
    labels = {
        task: _label(_column(sets[key], key, rows, path), key, path)
        for name, task in LABELS.items()
        for key in sets
        if _base(key) == name
    }
    return ModalityFile(
        [str(row) for row in range(rows)] if ids is None else ids,
        embedding,
        _quality(sets, rows, path),
        _patches(sets, rows, path),
        _variance(sets, rows, path),
        labels,
        ids is not None,
    )


def read_all_datasets(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return every dataset of a file, however deep, by its path in it."""
    found: dict[str, npt.NDArray[Any]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = np.asarray(node[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except files.HDF5_DAMAGE as error:
        raise files.unreadable(path, error, "write the file again") from None
    return found


def aggregate(rows: ModalityFile) -> ModalityFile:
    """Return one row a patient: the mean of its slides by their patches, variance, mean quality.

    The variance is that between slides, weighted alike, plus what each says of its own.
    """
    patients = list(dict.fromkeys(rows.ids))
    place = {name: i for i, name in enumerate(patients)}
    owner = np.array([place[name] for name in rows.ids])
    patches = rows.patches if rows.patches is not None else np.ones(len(owner))
    weight = np.maximum(np.nan_to_num(patches), 1.0)
    total = np.bincount(owner, weight)

    def mean(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        summed = np.zeros((len(patients), *values.shape[1:]))
        np.add.at(summed, owner, values * weight.reshape(-1, *[1] * (values.ndim - 1)))
        return summed / total.reshape(-1, *[1] * (values.ndim - 1))

    center = mean(rows.embedding)
    between = mean((rows.embedding - center[owner]) ** 2)
    within = 0 if rows.variance is None else mean(rows.variance)
    first = np.unique(owner, return_index=True)[1]
    return ModalityFile(
        patients,
        center.astype(np.float32),
        mean(rows.quality).astype(np.float32),
        np.bincount(owner, patches).astype(np.float64),
        (between + within).astype(np.float32),
        {task: label[first] for task, label in rows.labels.items()},
        rows.named,
    )


def write_modality(path: Path, datasets: Mapping[str, Any]) -> None:
    """Write datasets to a file, by rename; texts as UTF-8."""
    with files.new_file(path) as partial, h5py.File(partial, "w") as file:
        for name, values in datasets.items():
            array = np.asarray(values)
            if array.dtype.kind in "UO":
                file.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
            else:
                file.create_dataset(name, data=array)


def _base(key: str) -> str:
    return key.rpartition("/")[2].lower()


def _find(sets: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> str | None:
    for name in names:
        for key in sets:
            if _base(key) == name:
                return key
    return None


def _column(found: npt.NDArray[Any], key: str, rows: int, path: Path) -> npt.NDArray[Any]:
    """Return a dataset of one cell a row, [N] or [N, 1], as [N]."""
    if found.shape not in ((rows,), (rows, 1)):
        raise _misfit(found, key, rows, path)
    return found.reshape(rows)


def _misfit(found: npt.NDArray[Any], key: str, rows: int, path: Path) -> InputError:
    return InputError(
        f"{path}: {key} has the shape {list(found.shape)}, but there are {rows} embeddings; give "
        "it a row for each"
    )


def _label(found: npt.NDArray[Any], key: str, path: Path) -> npt.NDArray[np.int8]:
    cells = [x.decode("utf-8", "replace") if isinstance(x, bytes) else x for x in found.tolist()]
    known = [None if cell in _UNKNOWN else cell for cell in cells]
    return read_truth(pa.array(known), str(path), key, range(1, len(cells) + 1))


def _patches(
    sets: Mapping[str, npt.NDArray[Any]], rows: int, path: Path
) -> npt.NDArray[np.float64] | None:
    key = _find(sets, PATCHES)
    if key is None:
        return None
    found = sets[key].astype(np.float64)
    return np.full(rows, found.item()) if found.size == 1 else _column(found, key, rows, path)


def _variance(sets: Mapping[str, npt.NDArray[Any]], rows: int, path: Path) -> Floats | None:
    key = _find(sets, VARIANCES)
    if key is None:
        return None
    if sets[key].shape != (rows, WIDTH):
        raise _misfit(sets[key], key, rows, path)
    return sets[key].astype(np.float32)


def _embedding(sets: Mapping[str, npt.NDArray[Any]], path: Path) -> tuple[Floats, list[str] | None]:
    """Return the embedding, and the names of the groups it was stacked from, if it was."""
    flat = {k: v for k, v in sets.items() if v.ndim == 2 and v.dtype.kind in "fiu"}
    key = _find(flat, EMBEDDINGS)
    if key is None:
        stacked = sorted(
            k for k, v in sets.items() if _base(k) == "features" and v.ndim == 1 and "/" in k
        )
        if stacked:
            found = np.stack([sets[k] for k in stacked])
            return _wide(found, path), [k.split("/")[-2] for k in stacked]
        ids = _find(sets, IDS)
        rows = len(sets[ids]) if ids else -1
        alike = [k for k, v in flat.items() if len(v) == rows]
        key = alike[0] if alike else max(flat, key=lambda k: flat[k].size, default=None)
    if key is None:
        raise InputError(f"{path}: no two-dimensional dataset; it needs embedding_512 [N, 512]")
    return _wide(flat[key], path), None


def _wide(found: npt.NDArray[Any], path: Path) -> Floats:
    if found.shape[1] != WIDTH:
        raise InputError(f"{path}: the embedding is {found.shape[1]} wide, not {WIDTH}")
    result = found.astype(np.float32)
    if not np.isfinite(result).all():
        raise InputError(f"{path}: the embedding holds NaN or infinity")
    return result


def _ids(
    sets: Mapping[str, npt.NDArray[Any]], rows: int, path: Path, parents: list[str] | None
) -> list[str] | None:
    if parents is not None:
        return normalized_ids(parents, path)
    key = _find(sets, IDS)
    if key is None:
        return None
    found = np.atleast_1d(sets[key])
    if len(found) != rows:
        raise InputError(f"{path}: {len(found)} of {key} but {rows} embeddings")
    return normalized_ids(found.tolist(), path)


def _quality(sets: Mapping[str, npt.NDArray[Any]], rows: int, path: Path) -> Floats:
    """Return one number a row: one for all, the mean of several, 1 where nothing is said."""
    key = _find(sets, QUALITIES)
    if key is None:
        return np.ones(rows, np.float32)
    found = np.asarray(sets[key], np.float64)
    if found.size == 1:
        found = np.full(rows, found.item())
    elif found.ndim == 2:
        told = np.isfinite(found)
        found = np.where(told, found, 0).sum(1) / np.maximum(told.sum(1), 1)
    if found.shape != (rows,):
        raise _misfit(sets[key], key, rows, path)
    fill = float(np.nanmean(found)) if np.isfinite(found).any() else 1.0
    return np.where(np.isfinite(found), found, fill).astype(np.float32)
