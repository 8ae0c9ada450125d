"""`hourly_tensors.h5`: hourly grids of vital signs in one HDF5 file, written and read in pieces.

N patients, H hours, V vitals. Root datasets: `values` float32 in the vitals' units, without gaps;
`masks` int8, 1 where observed; `imputation_tier` int8, 1 observed, 2 carried, 3 the patient's mean,
4 the cohort's; `time_deltas` float32, hours since the last observation, all [N, H, V]; and
`patient_index` [N], `vital_index` [V], `hour_index` int32 [H].
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import numpy.typing as npt

from ehr_ray.errors import InputError
from ehr_ray.events.grid import (
    hours_since,
    imputed,
    observations,
    scales,
    to_grid,
)
from ehr_ray.events.options import Vital
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.storage import files

CUBES: Final = {
    "values": np.float32,
    "masks": np.int8,
    "imputation_tier": np.int8,
    "time_deltas": np.float32,
}
CHUNK: Final = 64
"""Patients held and written together."""
FIRST_HOUR: Final = -24
"""First hour of a file that does not say."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The grid of a file: its vitals, first hour and number of hours, and what hour 0 is."""

    vitals: Sequence[Vital]
    first_hour: int
    num_hours: int
    origin: str = "admission"


def write_hourly(
    path: Path, patients: Iterable[Patient], window: Window, vocabulary: Vocabulary
) -> int:
    """Write the grids of patients, a few at a time, by rename; return their number.

    Cohort means, which fill a vital a patient never had, are those of train.
    """
    count = 0
    with files.new_file(path) as partial, h5py.File(partial, "w") as file:
        sets = _create(file, window)
        for group in _groups(patients, CHUNK):
            _append(sets, count, _cubes(group, window, vocabulary))
            names = np.array([str(p.subject_id) for p in group], object)
            _grow(sets["patient_index"], count, names)
            count += len(group)
    return count


def _create(file: h5py.File, window: Window) -> dict[str, h5py.Dataset]:
    shape = (window.num_hours, len(window.vitals))
    sets = {
        name: file.create_dataset(
            name,
            (0, *shape),
            dtype,
            maxshape=(None, *shape),
            chunks=(8, *shape),
            compression="gzip",
        )
        for name, dtype in CUBES.items()
    }
    text = h5py.string_dtype()
    sets["patient_index"] = file.create_dataset("patient_index", (0,), text, maxshape=(None,))
    file.create_dataset("vital_index", data=[v.name for v in window.vitals], dtype=text)
    hours = np.arange(window.first_hour, window.first_hour + window.num_hours, dtype=np.int32)
    file.create_dataset("hour_index", data=hours)
    return sets


def _cubes(
    group: Sequence[Patient], window: Window, vocabulary: Vocabulary
) -> dict[str, npt.NDArray[Any]]:
    found = [
        observations(
            patient,
            window.vitals,
            vocabulary,
            first_hour=window.first_hour,
            num_hours=window.num_hours,
            origin=window.origin,
        )
        for patient in group
    ]
    row = np.repeat(np.arange(len(found)), [len(one.hour) for one in found])
    hour, vital, value = (
        np.concatenate([getattr(one, name) for one in found]) for name in ("hour", "vital", "value")
    )
    shape = (len(found), window.num_hours, len(window.vitals))
    mean, observed = to_grid(row, hour, vital, value, shape)
    carry = np.array([v.carry_hours for v in window.vitals])
    filled, tier = imputed(mean, observed, carry, scales(window.vitals, vocabulary)[0])
    return {
        "values": filled,
        "masks": observed.astype(np.int8),
        "imputation_tier": tier,
        "time_deltas": hours_since(observed, window.first_hour),
    }


def _append(sets: dict[str, h5py.Dataset], at: int, cubes: dict[str, npt.NDArray[Any]]) -> None:
    for name, cube in cubes.items():
        _grow(sets[name], at, cube)


def _grow(dataset: h5py.Dataset, at: int, rows: npt.NDArray[Any]) -> None:
    dataset.resize(at + len(rows), axis=0)
    dataset[at : at + len(rows)] = rows


def _groups(items: Iterable[Patient], size: int) -> Iterator[list[Patient]]:
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


@dataclass(frozen=True, eq=False)
class Hourly:
    """What a file says of some patients: names [N], observed cells and their values, [N, H, V]."""

    names: list[str]
    values: npt.NDArray[np.float32]
    observed: npt.NDArray[np.bool_]


def describe_hourly(path: Path) -> tuple[int, list[str], npt.NDArray[np.int32]]:
    """Return the number of patients, the vitals and the hours; InputError if it is no such file."""
    with _opened(path) as file:
        shape = file["values"].shape
        vitals = [_text(name) for name in file["vital_index"][:]]
        hours = (
            file["hour_index"][:].astype(np.int32)
            if "hour_index" in file
            else np.arange(shape[1], dtype=np.int32) + FIRST_HOUR
        )
    if shape[1:] != (len(hours), len(vitals)):
        raise InputError(
            f"{path}: values have {shape[1]} hours and {shape[2]} vitals, the indices "
            f"{len(hours)} and {len(vitals)}; write the file again"
        )
    return int(shape[0]), vitals, hours


def read_hourly(path: Path, start: int, stop: int) -> Hourly:
    """Return the patients `start` to `stop` (exclusive) of a file, and no others."""
    with _opened(path) as file:
        part = slice(start, stop)
        return Hourly(
            names=[_text(name) for name in file["patient_index"][part]],
            values=file["values"][part].astype(np.float32),
            observed=file["masks"][part] > 0,
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            missing = {"values", "masks", "patient_index", "vital_index"} - set(file)
            if missing:
                raise InputError(
                    f"{path}: no dataset {sorted(missing)[0]}; see `ehr-ray prepare --export`"
                )
            yield file
    except files.HDF5_DAMAGE as error:
        raise files.unreadable(path, error, "write the file again") from error


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
