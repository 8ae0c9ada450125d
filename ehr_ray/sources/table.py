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
from ehr_ray.sources.parsing.cells import Mask, Times, since_epoch, texts, timestamps
from ehr_ray.sources.parsing.csv_files import (
    SUFFIXES,
    Dialect,
    count_rows,
    csv_columns,
    encoding_hint,
    lines_of,
    listed,
    read_csv,
)
from ehr_ray.sources.parsing.csv_ranges import split_lines
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.label_table import (
    LabelFields,
    LabelOptions,
    label_units,
    read_labels,
)
from ehr_ray.sources.parsing.parquet_files import (
    READ_ERRORS,
    check_damage,
    in_order,
    read_row_groups,
    split_row_groups,
)
from ehr_ray.sources.parsing.parquet_files import (
    count_rows as count_parquet_rows,
)
from ehr_ray.sources.parsing.quantities import numbers
from ehr_ray.sources.parsing.quarantine import UNREAD, Rejects
from ehr_ray.sources.parsing.rows import clean_rows
from ehr_ray.sources.source import Chunk, Source, Unit
from ehr_ray.storage.contents import walked
from ehr_ray.storage.paths import uri_of

PARQUET: Final = ".parquet"
MAY_HOLD_ROWS: Final = (
    *(".txt", ".dat", ".tab", ".psv", ".xls", ".xlsx", ".jsonl", ".feather", ".arrow", ".pq"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z"),
)
"""Endings of files that are not read, and told."""
NO_ROWS: Final = ("readme", "license", "sha256sums", "changelog")
"""Beginnings of the names of files that go with data and hold none."""


@dataclass(frozen=True)
class TableOptions(LabelFields):
    """Which column is what."""

    id_column: str = field(
        default="subject_id", metadata={"help": "column of subject ids, of labels as of events"}
    )
    time_column: str = field(default="time", metadata={"help": "column of times; blank = static"})
    code_column: str = field(default="code", metadata={"help": "column of what was observed"})
    value_column: str = field(default="numeric_value", metadata={"help": "column of values"})
    unit_column: str | None = field(
        default=None, metadata={"help": "column of units; a code becomes code//unit"}
    )
    time_unit: Literal["timestamp", "minutes", "hours"] = field(
        default="timestamp", metadata={"help": "dates, or time since admission in this unit"}
    )
    delimiter: str | None = field(
        default=None, metadata={"help": "of CSV files, such as ';' or tab (a comma unless given)"}
    )
    decimal: Literal[".", ","] = field(
        default=".", metadata={"help": "decimal mark of numbers in text"}
    )
    encoding: str = field(
        default="utf-8", metadata={"help": "of CSV files, such as latin-1 or cp1252"}
    )

    def __post_init__(self) -> None:
        """Refuse a delimiter or an encoding that there is not."""
        self.dialect()

    def columns(self) -> dict[str, str]:
        """Return flag -> column, in the order id, time, code, value and, if any, unit."""
        names = ("id_column", "time_column", "code_column", "value_column", "unit_column")
        given = {"--" + name.replace("_", "-"): getattr(self, name) for name in names}
        return {flag: column for flag, column in given.items() if column is not None}

    def dialect(self) -> Dialect:
        """Return how the CSV files are written."""
        tab = self.delimiter in ("tab", "\\t")
        return Dialect("\t" if tab else self.delimiter, self.encoding)


def units(path: Path, options: TableOptions) -> list[Unit]:
    """List CSV files by ranges of lines and Parquet files by row groups, in order of name."""
    root = path if path.is_dir() else path.parent
    names, others = ([path.name], []) if path.is_file() else _names(path)
    labels = label_units(options)
    found = []
    for name in names:
        if options.labels and _is_one(root / name, options.labels):
            continue
        found.append(Unit(str(root), (name,), "parquet" if _is_parquet(name) else "csv"))
    if not found:
        raise InputError(f"--input {path}: no file ending in {', '.join((*SUFFIXES, PARQUET))}")
    _refuse_twins(path, [unit.files[0] for unit in found])
    unread = [
        name for name in others if not (options.labels and _is_one(root / name, options.labels))
    ]
    beside = [Unit(str(root), kind="unread", state="\n".join(unread))] if unread else []
    return in_order(partial(_divided, options), found) + beside + labels


def _divided(options: TableOptions, unit: Unit) -> list[Unit]:
    if unit.kind == "parquet":
        return split_row_groups(unit)
    return split_lines(unit, options.dialect())


def _is_one(path: Path, other: Path) -> bool:
    """Whether two paths are of one file, of which either may be a copy or a stand-in."""
    uri = uri_of(path)
    return path.resolve() == other.resolve() or (uri is not None and uri == uri_of(other))


def _refuse_twins(path: Path, names: list[str]) -> None:
    """Raise `InputError` where a file stands beside its compressed or converted copy."""
    stems: dict[str, str] = {}
    for name in dict.fromkeys(names):
        stem = (name[:-3] if name.lower().endswith(".gz") else name).rpartition(".")[0]
        other = stems.setdefault(stem, name)
        if other != name:
            raise InputError(
                f"--input {path}: {other} beside {name}, which would be read twice; remove one"
            )


def _names(path: Path) -> tuple[list[str], list[str]]:
    """Return (files of a folder that are read, others that may hold rows), in any capitals."""
    every = [prefix + name for prefix, names in walked(path) for name in names]
    read = [name for name in every if name.lower().endswith((*SUFFIXES, PARQUET))]
    rest = sorted({*every} - {*read})
    lower = {name: name.lower() for name in rest}
    return read, [
        name
        for name in rest
        if lower[name].endswith(MAY_HOLD_ROWS)
        and not lower[name].rpartition("/")[2].startswith(NO_ROWS)
    ]


def _is_parquet(name: str) -> bool:
    return name.lower().endswith(PARQUET)


def read(unit: Unit, options: TableOptions) -> Iterator[Chunk]:
    """Yield events about 16 MB or 1,000,000 rows at a time, or the labels."""
    if unit.kind == "labels":
        yield from read_labels(unit, _label_options(options))
        return
    if unit.kind == "unread":
        beside = Rejects()
        for name in unit.state.split("\n"):
            beside.change(UNREAD, 1, name)
        yield Chunk(**beside.tables())
        return
    try:
        yield from _parquet(unit, options) if unit.kind == "parquet" else _csv(unit, options)
    except READ_ERRORS as error:
        path = os.path.join(unit.root, unit.files[0])
        check_damage(path, error)
        rejects = Rejects()
        rejects.file(unit.files[0], f"unreadable: {error}{encoding_hint(error)}")
        lost = (
            count_parquet_rows(unit) if unit.kind == "parquet" else count_rows(path, lines_of(unit))
        )
        yield Chunk(rejects=rejects.table(), files_read=int(unit.start == 0), lost_rows=lost)
    else:
        # A file in several units counts once.
        yield Chunk(files_read=int(unit.start == 0))


def _csv(unit: Unit, options: TableOptions) -> Iterator[Chunk]:
    name = unit.files[0]
    columns = options.columns()
    dialect = options.dialect()
    path = os.path.join(unit.root, name)
    _check_columns(path, csv_columns(path, dialect), columns)
    read = 0
    wanted = list(dict.fromkeys(columns.values()))
    for table, lines, rejects in read_csv(
        unit.root, name, wanted, dialect=dialect, one_line=True, part=lines_of(unit)
    ):
        malformed = len(rejects)
        # A row of nothing but separators, or nothing at all, is no row.
        empty = np.ones(len(table), bool)
        for column in table.columns:
            if empty.any():
                empty &= pc.equal(column, "").to_numpy()
        if empty.any():
            table, lines = table.filter(pa.array(~empty)), lines[~empty]
        read += len(table) + malformed
        yield _chunk(table, options, (name, lines), rejects, malformed)
    if not (read or unit.stop):
        raise pa.ArrowInvalid("no rows")


def _parquet(unit: Unit, options: TableOptions) -> Iterator[Chunk]:
    columns = options.columns()
    for first, table in read_row_groups(unit, list(dict.fromkeys(columns.values()))):
        lines = np.arange(first + 1, first + 1 + len(table))
        yield _chunk(table, options, (unit.files[0], lines), Rejects(), 0)


def _check_columns(path: str, present: list[str], columns: dict[str, str]) -> None:
    name = os.path.basename(path)
    for flag, column in columns.items():
        if column not in present:
            marks = [mark for mark in (";", "\t", "|") if len(present) == 1 and mark in present[0]]
            hint = (
                f"; say --delimiter {'tab' if marks[0] == chr(9) else repr(marks[0])}"
                if marks
                else ""
            )
            raise InputError(f"{flag} {column}: {name} has the columns {listed(present)}{hint}")


def _chunk(
    table: pa.Table,
    options: TableOptions,
    where: tuple[str, np.ndarray],
    rejects: Rejects,
    malformed: int,
) -> Chunk:
    """Return a chunk of rows; `where` are their file and its lines, int64 [rows]."""
    name, lines = where
    clock = options.time_unit == "timestamp"
    ids, blank, names = subject_ids(table[options.id_column])
    code = table[options.code_column]
    if options.unit_column is not None:
        code = _with_unit(code, table[options.unit_column])
    events, _ = clean_rows(
        (ids, blank),
        table[options.time_column],
        code,
        table[options.value_column],
        read_time=partial(read_times, options),
        place=lambda i: (name, int(lines[i])),
        rejects=rejects,
        decimal=options.decimal,
        of_numbers="; say --time-unit minutes or hours" if clock else "",
        zones_of=f"{name}, column {options.time_column}" if clock else "",
    )
    return Chunk(
        events=events,
        **rejects.tables(),
        rows_read=len(table) + malformed,
        names=names,
    )


def _with_unit(code: pa.ChunkedArray, unit: pa.ChunkedArray) -> pa.Array:
    """Return `code//unit`, or the code alone where there is no unit."""
    codes, _ = texts(code)
    units, blank = texts(unit, "of units")
    joined = pc.binary_join_element_wise(codes, units, "//")
    return pc.if_else(pa.array(blank), codes, joined)


def _label_options(options: TableOptions) -> LabelOptions:
    return LabelOptions(
        id_column=options.id_column,
        default_id=TableOptions.id_column,
        stays=False,
        time_columns=("prediction_time", options.time_column, "time"),
        read_time=partial(read_times, options),
        clock=options.time_unit == "timestamp",
        tasks=options.label_columns,
        numbers=options.label_numbers,
        classes=options.label_classes,
        decimal=options.decimal,
        minute=options.label_minute,
        dialect=options.dialect(),
    )


def read_times(
    options: TableOptions, column: pa.ChunkedArray, name: str | None = None
) -> tuple[Times, Mask]:
    """Return microseconds since 1970 of a column of times, and which of its rows are no time."""
    if options.time_unit == "timestamp":
        return timestamps(column, name or options.time_column)
    values, bad = numbers(column, name or options.time_column, options.decimal)
    times, far = since_epoch(values, 60.0 if options.time_unit == "hours" else 1.0)
    return times, bad | far


SOURCE: Final = Source(
    name="table",
    description="one long CSV or Parquet table, a row an event; columns named by options",
    options=TableOptions,
    units=units,
    read=read,
    relative_time=lambda options: options.time_unit != "timestamp",
    walks=("",),
)
