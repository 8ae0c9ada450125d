"""Labels from a CSV: one row a subject, one column a task."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import BLANK, by_unique
from ehr_ray.sources.parsing.csv_files import csv_columns, read_csv
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.source import Chunk, Unit

ID_COLUMNS: Final = ("ts_id", "subject_id", "patient_id", "stay_id", "hadm_id", "RecordID", "id")
"""Looked for in this order; else the first column is the id."""

TRUE: Final = frozenset({"1", "1.0", "true", "yes"})
FALSE: Final = frozenset({"0", "0.0", "false", "no"})

LABELS_HELP: Final = "CSV with an id column (such as ts_id) and columns of 0/1, one a task"
COLUMNS_HELP: Final = "its task columns, by comma (all that are mostly 0/1 unless given)"
MINUTE_HELP: Final = "prediction time, minutes after admission (the last event unless given)"

_UNKNOWN, _BAD = -1, -2


def labels_unit(path: Path) -> Unit:
    """Return the unit that reads a labels CSV; raises `InputError` where there is none."""
    if not path.is_file():
        raise InputError(f"--labels {path}: no such file; check the path")
    return Unit(str(path.absolute().parent), (path.name,), "labels")


def read_labels(unit: Unit, columns: str | None, minute: float | None) -> Iterator[Chunk]:
    """Yield the labels of a CSV. A blank cell is unknown and gives no label.

    A cell that is neither blank nor a truth value is a rejected row.
    """
    name, path = unit.files[0], os.path.join(unit.root, unit.files[0])
    names = csv_columns(path)
    try:
        pieces = list(read_csv(unit.root, name, names))
    except READ_ERRORS as error:
        raise InputError(f"--labels {path}: not a readable CSV ({error})") from None
    table = pa.concat_tables([piece for piece, _, _ in pieces]).combine_chunks()
    lines = np.concatenate([lines for _, lines, _ in pieces])
    malformed = [rejects.table() for _, _, rejects in pieces]
    rejects = Rejects()
    key = next((column for column in ID_COLUMNS if column in names), names[0])
    ids, blank, _ = subject_ids(table[key])
    rejects.rows(blank, lambda i: (name, int(lines[i])), lambda _: f"{key} is blank")
    labels = {}
    for task in _tasks(name, table, key, columns):
        truth = by_unique(table[task].combine_chunks(), _truth, np.int8)
        for i in np.flatnonzero((truth == _BAD) & ~blank):
            reason = f"{task} {table[task][int(i)].as_py()!r} is not 0 or 1"
            rejects.row(name, int(lines[i]), reason)
        known = (truth >= 0) & ~blank
        labels[task] = label_rows(ids[known], truth[known].astype(bool), minute)
    yield Chunk(
        labels=labels,
        rejects=pa.concat_tables([*malformed, rejects.table()]),
        rows_read=len(table) + sum(map(len, malformed)),
        files_read=1,
    )


def _truth(cell: str) -> int:
    text = cell.strip().lower()
    if text in BLANK:
        return _UNKNOWN
    return 1 if text in TRUE else 0 if text in FALSE else _BAD


def _tasks(name: str, table: pa.Table, key: str, columns: str | None) -> list[str]:
    candidates = [column for column in table.column_names if column != key]
    if columns is not None:
        wanted = [column.strip() for column in columns.split(",")]
        for column in wanted:
            if column not in candidates:
                raise InputError(f"--label-columns {column}: {name} has {', '.join(candidates)}")
        return wanted
    tasks = []
    for column in candidates:
        truth = by_unique(table[column].combine_chunks(), _truth, np.int8)
        if 2 * np.sum(truth >= 0) > np.sum(truth != _UNKNOWN):
            tasks.append(column)
    if not tasks:
        raise InputError(f"--labels {name}: no column of 0/1 beside {key}")
    return tasks
