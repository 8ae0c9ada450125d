"""A folder of eICU-CRD -> units of work, and a unit -> chunks."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.eicu.options import EicuOptions
from ehr_ray.sources.eicu.patients import hospital_codes, patient_events
from ehr_ray.sources.eicu.stays import MAX_MINUTES, Stays, load
from ehr_ray.sources.eicu.tables import BY_NAME, DISCHARGE, HOSPITAL, PATIENT, STAY, TABLES
from ehr_ray.sources.eicu.tasks import labels
from ehr_ray.sources.parsing.blocks import Block, read_blocks, read_whole, split_table
from ehr_ray.sources.parsing.csv_files import lines_of
from ehr_ray.sources.parsing.event_rows import event_rows, table_chunks
from ehr_ray.sources.parsing.quarantine import OPEN_VISIT
from ehr_ray.sources.parsing.table_files import table_files, warn_of_missing
from ehr_ray.sources.parsing.tables import Table
from ehr_ray.sources.source import Chunk, Unit

LABELS: Final = "labels"


def units(path: Path, options: EicuOptions) -> list[Unit]:  # noqa: ARG001
    """List the patients, the tables that are there, large ones in ranges, and the labels.

    Says once which tables are not there. Raises `InputError` without a table of stays.
    """
    files = table_files(path, [*BY_NAME, HOSPITAL.name])
    if PATIENT.name not in files:
        raise InputError(
            f"--input {path}: no patient.csv or patient.csv.gz; give the folder of eICU-CRD 2.0 "
            "that holds its tables"
        )
    warn_of_missing(path, [name for name in (*BY_NAME, HOSPITAL.name) if name not in files])
    stays = (files[PATIENT.name],)
    beside = (files[HOSPITAL.name],) if HOSPITAL.name in files else ()
    found = [Unit(str(path), stays, PATIENT.name, uses=(*stays, *beside))]
    for table in TABLES:
        if table.name in files:
            unit = Unit(str(path), (files[table.name],), table.name, uses=stays)
            found += split_table(unit, table)
    return [*found, Unit(str(path), (), LABELS, uses=stays)]


def _stays(root: str, name: str) -> Stays:
    """Return the stays, kept for the next unit of this process until the file changes."""
    status = os.stat(os.path.join(root, name))
    return _loaded(root, name, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(root: str, name: str, size: int, changed: int) -> Stays:  # noqa: ARG001
    return load(root, name)[0]


def read(unit: Unit, options: EicuOptions) -> Iterator[Chunk]:
    """Yield the events of a table, about 260,000 rows at a time, or all labels."""
    name, *beside = unit.uses
    if unit.kind == LABELS:
        yield Chunk(labels=labels(_stays(unit.root, name), options))
    elif unit.kind == PATIENT.name:
        stays, blocks = load(unit.root, name)
        events = patient_events(stays, _hospitals(unit.root, *beside))
        blocks[0].rejects.change(OPEN_VISIT, stays.open_visits())
        tables = [block.rejects.tables() for block in blocks]
        yield Chunk(
            events,
            rejects=pa.concat_tables([t["rejects"] for t in tables]),
            changes=pa.concat_tables([t["changes"] for t in tables]),
            rows_read=sum(block.rows_read for block in blocks),
            files_read=1,
            names=stays.names,
        )
    else:
        yield from _table(unit, BY_NAME[unit.kind], _stays(unit.root, name))


def _hospitals(root: str, name: str | None = None) -> dict[int, tuple[str, ...]]:
    """Return the static codes of each hospital."""
    if name is None:
        return {}
    columns = {HOSPITAL.key: np.int64, **dict.fromkeys(HOSPITAL.columns, object)}
    found: dict[int, tuple[str, ...]] = {}
    for block in read_whole(root, name, HOSPITAL, columns):
        kinds = (np.asarray(block.columns[c]).tolist() for c in HOSPITAL.columns)
        for hospital, *words in zip(block.columns[HOSPITAL.key].tolist(), *kinds, strict=True):
            found.setdefault(hospital, hospital_codes(*words))
    return found


def _table(unit: Unit, table: Table, stays: Stays) -> Iterator[Chunk]:
    name = unit.files[0]

    def to_events(block: Block) -> pa.Table:
        for column in [c for c in table.columns if c.endswith("offset")]:
            minutes = block.columns[column]
            block.refuse(np.abs(minutes) > MAX_MINUTES, lambda _: "an offset above a century")
        row = stays.row_of(block.columns[STAY])
        for column in [c for c in table.columns if c.endswith("offset")]:
            block.columns[column] = stays.place(row, block.columns[column])
        block.columns[DISCHARGE] = stays.unit_end[row]
        subjects = stays.subject[row]
        return pa.concat_tables([event_rows(event, block, subjects) for event in table.events])

    part = lines_of(unit)
    blocks = read_blocks(unit.root, name, table, stays, part)
    yield from table_chunks(unit.root, name, blocks, to_events, part=part)
