"""One Parquet file a patient: `{train,valid,test}/<id>.parquet` with variable, value and minute.

Other columns are ignored; a blank minute is a static event. A million files is a usual input, so
a unit is a group of files of one folder, read one after another in one thread.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import Mask, Times, since_epoch
from ehr_ray.sources.parsing.csv_files import refuse_repeats
from ehr_ray.sources.parsing.identifiers import NAMES, subject_id
from ehr_ray.sources.parsing.label_table import (
    LabelFields,
    LabelOptions,
    label_units,
    read_labels,
)
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS, check_damage
from ehr_ray.sources.parsing.quantities import numbers
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.parsing.rows import clean_rows
from ehr_ray.sources.parsing.split_folders import files_by_split
from ehr_ray.sources.source import CHUNK_ROWS, FILES_PER_UNIT, Chunk, Source, Unit
from ehr_ray.storage import files

COLUMNS: Final = ["variable", "value", "minute"]
SUFFIX: Final = ".parquet"


@dataclass(frozen=True)
class PatientParquetOptions(LabelFields):
    """Labels beside the patients."""

    id_column: str = field(
        default="ts_id", metadata={"help": "column of the label table with the names of the files"}
    )


def units(path: Path, options: PatientParquetOptions) -> list[Unit]:
    """List groups of 2,000 files of the folder itself and of its split folders."""
    if not path.is_dir():
        raise InputError(f"--input {path}: must be a folder of <id>.parquet or of split folders")
    found = []
    for folder, split, names in files_by_split(path, (SUFFIX,), _is_patient):
        root = str(path / folder)
        for start in range(0, len(names), FILES_PER_UNIT):
            found.append(Unit(root, tuple(names[start : start + FILES_PER_UNIT]), split=split))
    if not found:
        wanted = "train/, valid/, test/, tuning/, held_out/"
        raise InputError(f"--input {path}: no <id>.parquet in it or in its {wanted}")
    return found + label_units(options)


def _is_patient(path: Path) -> bool:
    try:
        return {*COLUMNS} <= {*files.open_parquet(path).schema_arrow.names}
    except READ_ERRORS:
        return False


def read(unit: Unit, options: PatientParquetOptions) -> Iterator[Chunk]:
    """Yield whole patients, about 1,000,000 rows at a time, or the labels."""
    if unit.kind == "labels":
        yield from read_labels(unit, _label_options(options))
        return
    group: list[tuple[str, pa.Table]] = []
    rows = files_read = 0
    rejects = Rejects()
    for name in unit.files:
        files_read += 1
        try:
            table = _read_patient(os.path.join(unit.root, name))
        except (*READ_ERRORS, InputError) as error:
            check_damage(os.path.join(unit.root, name), error)
            rejects.file(_shown(unit, name), str(error))
            continue
        group.append((name, table))
        rows += len(table)
        if rows >= CHUNK_ROWS:
            yield from _chunks(unit, group, rejects, files_read)
            group, rows, files_read, rejects = [], 0, 0, Rejects()
    yield from _chunks(unit, group, rejects, files_read)


def _label_options(options: PatientParquetOptions) -> LabelOptions:
    return LabelOptions(
        id_column=options.id_column,
        default_id=PatientParquetOptions.id_column,
        stays=True,
        time_columns=("prediction_time", "minute", "time"),
        read_time=_minutes,
        tasks=options.label_columns,
        numbers=options.label_numbers,
        classes=options.label_classes,
        minute=options.label_minute,
    )


def _read_patient(path: str) -> pa.Table:
    file = files.open_parquet(path)
    refuse_repeats(os.path.basename(path), file.schema_arrow.names)
    missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise InputError(f"no column {missing[0]}")
    if not file.metadata.num_rows:
        raise InputError("empty: no rows")
    table = file.read(COLUMNS, use_threads=False)
    return table.replace_schema_metadata(None)


def _shown(unit: Unit, name: str) -> str:
    return f"{os.path.basename(unit.root)}/{name}" if unit.split else name


def _chunks(
    unit: Unit, group: list[tuple[str, pa.Table]], rejects: Rejects, files_read: int
) -> Iterator[Chunk]:
    """Yield one chunk for each set of column types, so that columns are parsed together."""
    by_schema: dict[str, list[tuple[str, pa.Table]]] = {}
    for name, table in group:
        by_schema.setdefault(str(table.schema.types), []).append((name, table))
    yield Chunk(rejects=rejects.table(), files_read=files_read)
    for patients in by_schema.values():
        yield _patients(unit, patients)


def _patients(unit: Unit, patients: list[tuple[str, pa.Table]]) -> Chunk:
    rejects = Rejects()
    names = [name[: -len(SUFFIX)] for name, _ in patients]
    counts = np.array([len(table) for _, table in patients])
    table = pa.concat_tables([table for _, table in patients])
    of = np.repeat(np.arange(len(patients)), counts)
    starts = np.cumsum(counts) - counts
    ids = np.array([subject_id(name) for name in names], np.int64)
    try:
        events, kept = clean_rows(
            (ids[of], np.zeros(len(of), bool)),
            table["minute"],
            table["variable"],
            table["value"],
            read_time=_minutes,
            place=lambda i: (_shown(unit, patients[of[i]][0]), int(i - starts[of[i]]) + 1),
            rejects=rejects,
        )
    except InputError as error:
        for name, _ in patients:
            rejects.file(_shown(unit, name), str(error))
        return Chunk(rejects=rejects.table(), rows_read=len(of))
    if unit.split:
        events = events.append_column("split", pa.repeat(unit.split, len(events)))
    seen = np.unique(of[kept])
    shown = pa.array([_shown(unit, patients[i][0]) for i in seen], pa.string())
    return Chunk(
        events=events,
        **rejects.tables(),
        rows_read=len(of),
        subjects=pa.table({"subject_id": ids[seen], "file": shown}),
        names=pa.table([ids[seen], [names[i] for i in seen]], schema=NAMES),
    )


def _minutes(column: pa.ChunkedArray, name: str = "minute") -> tuple[Times, Mask]:
    values, bad = numbers(column, name)
    times, far = since_epoch(values, 1.0)
    return times, bad | far


SOURCE: Final = Source(
    name="patient-parquet",
    description="{train,valid,test}/<id>.parquet, a file a patient: variable, value, minute",
    options=PatientParquetOptions,
    units=units,
    read=read,
)
