"""`hourly_tensors.h5` to events: observed cells of hourly grids, in the middle of their hour."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.hourly_h5 import describe_hourly, read_hourly
from ehr_ray.sources.parsing.cells import events_table, since_epoch
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.source import Chunk, Source, Unit
from ehr_ray.storage import sync

PATIENTS_PER_UNIT: Final = 256


@dataclass(frozen=True)
class HourlyOptions:
    """This source has no options."""


def units(path: Path, options: HourlyOptions) -> list[Unit]:  # noqa: ARG001
    """Divide the patients of the file into runs of 256."""
    if not path.is_file():
        raise InputError(f"--input {path}: no such file; give an hourly_tensors.h5")
    path = sync.fetch(path)  # what it holds is said all over the file
    number, vitals, hours = describe_hourly(path)
    if not number:
        raise InputError(f"--input {path}: holds no patient")
    return [
        Unit(
            str(path.parent),
            (path.name,),
            start=start,
            stop=min(start + PATIENTS_PER_UNIT, number),
            size=PATIENTS_PER_UNIT * len(hours) * len(vitals),
        )
        for start in range(0, number, PATIENTS_PER_UNIT)
    ]


def read(unit: Unit, options: HourlyOptions) -> Iterator[Chunk]:  # noqa: ARG001
    """Yield the unit's patients; imputed cells are left out."""
    path = Path(unit.root) / unit.files[0]
    _, vitals, hours = describe_hourly(path)
    found = read_hourly(path, unit.start, unit.stop)
    patient, hour, vital = np.nonzero(found.observed & np.isfinite(found.values))
    ids, _, names = subject_ids(pa.array(found.names))
    times, _ = since_epoch(hours[hour].astype(np.float64) * 60 + 30, 1.0)
    codes = pa.array(vitals).take(pa.array(vital))
    values = found.values[patient, hour, vital].astype(float)
    events = events_table(ids[patient], times, codes, values)
    yield Chunk(events=events, rows_read=len(events), files_read=int(unit.start == 0), names=names)


SOURCE: Final = Source(
    name="hourly-h5",
    description="hourly grids of vital signs in one HDF5 file (hourly_tensors.h5)",
    options=HourlyOptions,
    units=units,
    read=read,
)
