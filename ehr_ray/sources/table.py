"""One long table, or a folder of its pieces, as CSV or Parquet: a row an event, in any order."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import Mask, Times, numbers, since_epoch, timestamps
from ehr_ray.sources.parsing.csv_files import SUFFIXES, csv_columns, read_csv
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.label_table import (
    COLUMNS_HELP,
    LABELS_HELP,
    MINUTE_HELP,
    LabelOptions,
    labels_unit,
    read_labels,
)
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS, read_row_groups, split_row_groups
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.parsing.rows import Place, clean_rows
from ehr_ray.sources.source import Chunk, Source, Unit

PARQUET: Final = ".parquet"


@dataclass(frozen=True)
class TableOptions:
    """Which column is what."""

    id_column: str = field(
        default="subject_id", metadata={"help": "column of subject ids, of labels as of events"}
    )
    time_column: str = field(default="time", metadata={"help": "column of times; blank = static"})
    code_column: str = field(default="code", metadata={"help": "column of what was observed"})
    value_column: str = field(default="numeric_value", metadata={"help": "column of values"})
    time_unit: Literal["timestamp", "minutes", "hours"] = field(
        default="timestamp", metadata={"help": "dates, or time since admission in this unit"}
    )
    labels: Path | None = field(default=None, metadata={"help": LABELS_HELP})
    label_columns: str | None = field(default=None, metadata={"help": COLUMNS_HELP})
    label_minute: float | None = field(default=None, metadata={"help": MINUTE_HELP})

    def columns(self) -> dict[str, str]:
        """Return flag -> column, in the order id, time, code, value."""
        names = ("id_column", "time_column", "code_column", "value_column")
        return {"--" + name.replace("_", "-"): getattr(self, name) for name in names}


def units(path: Path, options: TableOptions) -> list[Unit]:
    """List CSV files whole and Parquet files by row groups, in order of name."""
    root = path if path.is_dir() else path.parent
    names = [path.name] if path.is_file() else _names(path)
    labels = [labels_unit(options.labels)] if options.labels else []
    found = []
    for name in names:
        if options.labels and (root / name).resolve() == options.labels.resolve():
            continue
        unit = Unit(str(root), (name,), "parquet" if name.endswith(PARQUET) else "csv")
        found += split_row_groups(unit) if unit.kind == "parquet" else [unit]
    if not found:
        raise InputError(f"--input {path}: no file ending in {', '.join((*SUFFIXES, PARQUET))}")
    return found + labels


def _names(path: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(path):
        folders.sort()
        relative = os.path.relpath(folder, path)
        prefix = "" if relative == "." else relative + "/"
        wanted = (f for f in sorted(files) if f.endswith((*SUFFIXES, PARQUET)) and f[0] != ".")
        found += [prefix + name for name in wanted]
    return found


def read(unit: Unit, options: TableOptions) -> Iterator[Chunk]:
    """Yield events about 16 MB or 1,000,000 rows at a time, or the labels."""
    if unit.kind == "labels":
        yield from read_labels(unit, _label_options(options))
        return
    try:
        yield from _parquet(unit, options) if unit.kind == "parquet" else _csv(unit, options)
    except READ_ERRORS as error:
        rejects = Rejects()
        rejects.file(unit.files[0], f"unreadable: {error}")
        yield Chunk(rejects=rejects.table(), files_read=1)
    else:
        # A file in several units counts once.
        yield Chunk(files_read=int(unit.start == 0))


def _csv(unit: Unit, options: TableOptions) -> Iterator[Chunk]:
    name = unit.files[0]
    columns = options.columns()
    _check_columns(name, csv_columns(os.path.join(unit.root, name)), columns)
    read = 0
    for table, lines, rejects in read_csv(unit.root, name, list(dict.fromkeys(columns.values()))):
        malformed = len(rejects)
        # A row of nothing but separators, or nothing at all, is no row.
        empty = np.ones(len(table), bool)
        for column in table.columns:
            empty &= pc.equal(column, "").to_numpy()
        table, lines = table.filter(pa.array(~empty)), lines[~empty]
        read += len(table) + malformed
        yield _chunk(table, options, partial(_place, name, lines), rejects, malformed)
    if not read:
        raise pa.ArrowInvalid("no rows")


def _parquet(unit: Unit, options: TableOptions) -> Iterator[Chunk]:
    columns = options.columns()
    for first, table in read_row_groups(unit, list(dict.fromkeys(columns.values()))):
        lines = np.arange(first + 1, first + 1 + len(table))
        yield _chunk(table, options, partial(_place, unit.files[0], lines), Rejects(), 0)


def _place(name: str, lines: np.ndarray, i: int) -> tuple[str, int]:
    return name, int(lines[i])


def _check_columns(name: str, present: list[str], columns: dict[str, str]) -> None:
    for flag, column in columns.items():
        if column not in present:
            raise InputError(f"{flag} {column}: {name} has the columns {', '.join(present)}")


def _chunk(
    table: pa.Table, options: TableOptions, place: Place, rejects: Rejects, malformed: int
) -> Chunk:
    ids, blank, names = subject_ids(table[options.id_column])
    events, _ = clean_rows(
        (ids, blank),
        table[options.time_column],
        table[options.code_column],
        table[options.value_column],
        read_time=partial(_times, options),
        place=place,
        rejects=rejects,
    )
    return Chunk(
        events=events,
        rejects=rejects.table(),
        rows_read=len(table) + malformed,
        names=names,
    )


def _label_options(options: TableOptions) -> LabelOptions:
    return LabelOptions(
        id_column=options.id_column,
        default_id=TableOptions.id_column,
        stays=False,
        time_columns=("prediction_time", options.time_column, "time"),
        read_time=partial(_times, options),
        tasks=options.label_columns,
        minute=options.label_minute,
    )


def _times(
    options: TableOptions, column: pa.ChunkedArray, name: str | None = None
) -> tuple[Times, Mask]:
    if options.time_unit == "timestamp":
        return timestamps(column, name or options.time_column)
    values, bad = numbers(column, name or options.time_column)
    times, far = since_epoch(values, 60.0 if options.time_unit == "hours" else 1.0)
    return times, bad | far


SOURCE: Final = Source(
    name="table",
    description="one long CSV or Parquet table, a row an event; columns named by options",
    options=TableOptions,
    units=units,
    read=read,
    relative_time=lambda options: options.time_unit != "timestamp",
)
