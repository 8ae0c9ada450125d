"""Any MEDS dataset: divided into shards anew, its splits, labels and descriptions kept.

Of its event columns `subject_id`, `time`, `code` and `numeric_value` are read; a cohort has no
others.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.answers import NO_CLASS
from ehr_ray.events.labels import label_files, task_name
from ehr_ray.events.schema import SPLIT_NAMES
from ehr_ray.events.truth import NOT_KNOWN, read_truth
from ehr_ray.sources.parsing.cells import flat, spelled, texts, timestamps
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.labels import VALUE_TYPES, label_rows
from ehr_ray.sources.parsing.parquet_files import (
    READ_ERRORS,
    check_damage,
    count_rows,
    in_order,
    read_row_groups,
    split_row_groups,
)
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.parsing.rows import clean_rows
from ehr_ray.sources.source import LABEL_VALUES, Chunk, Source, Unit
from ehr_ray.storage import files, sync
from ehr_ray.storage.contents import walked

SPLITS_FILE: Final = "metadata/subject_splits.parquet"
CODES_FILE: Final = "metadata/codes.parquet"
PARQUET: Final = ".parquet"


@dataclass(frozen=True)
class MedsOptions:
    """This source has no options."""


def units(path: Path, options: MedsOptions) -> list[Unit]:  # noqa: ARG001
    """List row groups of `data/**/*.parquet`, then labels and code metadata."""
    root = str(path)
    shards = _parquet_files(root, "data")
    if not shards:
        raise InputError(f"--input {path}: no data/**/*.parquet, so no MEDS dataset")
    found = []
    for name in shards:
        folder = name.split("/")[1]
        split = folder if folder in SPLIT_NAMES else None
        found.append(Unit(root, (name,), split=split))
    found = in_order(split_row_groups, found)
    for paths in label_files(path).values():
        found += [Unit(root, (p.relative_to(path).as_posix(),), "labels") for p in paths]
    if (path / CODES_FILE).exists():
        found.append(Unit(root, (CODES_FILE,), "codes"))
    return found


def _parquet_files(root: str, below: str) -> list[str]:
    return [
        f"{below}/{prefix}{name}"
        for prefix, names in walked(os.path.join(root, below))
        for name in names
        if name.endswith(PARQUET)
    ]


def read(unit: Unit, options: MedsOptions) -> Iterator[Chunk]:  # noqa: ARG001
    """Yield events, labels or descriptions of one file."""
    readers = {"events": _events, "labels": _labels, "codes": _codes}
    try:
        yield from readers[unit.kind](unit)
    except (*READ_ERRORS, InputError) as error:
        if unit.kind == "labels" and isinstance(error, InputError):
            raise
        check_damage(os.path.join(unit.root, unit.files[0]), error)
        rejects = Rejects()
        rejects.file(unit.files[0], f"unreadable: {error}")
        yield Chunk(
            rejects=rejects.table(),
            files_read=int(unit.start == 0),
            lost_rows=count_rows(unit) if unit.kind == "events" else 0,
        )
    else:
        # A file in several units counts once.
        yield Chunk(files_read=int(unit.start == 0))


def _events(unit: Unit) -> Iterator[Chunk]:
    needed = ["subject_id", "time", "code"]
    for first, table in read_row_groups(unit, needed, ("numeric_value",)):
        rejects = Rejects()
        ids, blank, names = subject_ids(table["subject_id"])
        events, _ = clean_rows(
            (ids, blank),
            table["time"],
            table["code"],
            table["numeric_value"] if "numeric_value" in table.column_names else None,
            read_time=timestamps,
            place=lambda i, first=first: (unit.files[0], first + i + 1),  # type: ignore[misc]
            rejects=rejects,
            zones_of=f"{unit.files[0]}, column time",
        )
        split = pa.array([unit.split], pa.string()).take(pa.array(np.zeros(len(events), np.int64)))
        yield Chunk(
            events=events.append_column("split", split),
            **rejects.tables(),
            rows_read=len(table),
            names=names,
        )


def _labels(unit: Unit) -> Iterator[Chunk]:
    """Yield the labels of a file below `labels/`, of the task that its path names."""
    name = unit.files[0]
    task = task_name(name.removesuffix(PARQUET).split("/")[1:])
    table = files.open_parquet(os.path.join(unit.root, name)).read()
    columns = [column for column in LABEL_VALUES if column in table.column_names]
    present = [column for column in columns if table[column].null_count < len(table)]
    missing = {"subject_id", "prediction_time"} - set(table.column_names)
    if missing or not (present or len(table) == 0):
        has = ", ".join(table.column_names)
        raise InputError(
            f"{name}: labels need subject_id, prediction_time and an answer in one of "
            f"{', '.join(LABEL_VALUES)}; it has {has}"
        )
    if not present:
        return
    filled = [column for column in present if _says_something(table[column])]
    if "boolean_value" in filled:  # some programs write truth values as numbers besides
        truth = table["boolean_value"]
        filled = [c for c in filled if c == "boolean_value" or not _repeats(truth, table[c])]
    if len(filled) > 1:
        raise InputError(
            f"{name}: answers in {' and in '.join(filled)}; keep the column that is the task's"
        )
    column = (filled or present)[0]
    ids, blank, _ = subject_ids(table["subject_id"])
    times, bad = timestamps(table["prediction_time"], "prediction_time")
    rejects = Rejects()
    rejects.zones(table["prediction_time"], times, f"{name}, column prediction_time")
    unusable = blank | bad | np.isnat(times)
    rejects.rows(unusable, lambda i: (name, i + 1), lambda _: "no subject_id or prediction_time")
    values = _answers(name, column, table).filter(pa.array(~unusable))
    rows = label_rows(ids[~unusable], values, times=pa.array(times[~unusable]), column=column)
    yield Chunk(labels={task: rows}, **rejects.tables(), rows_read=len(table))


def _says_something(column: pa.ChunkedArray) -> bool:
    """Whether a cell holds more than what data frames and programs fill empty columns with."""
    text = spelled(flat(column), "of answers")
    blank = pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(text)), pa.array([*NO_CLASS, "none"]))
    return not pc.all(pc.or_kleene(blank, text.is_null())).as_py()


def _repeats(truth: pa.ChunkedArray, column: pa.ChunkedArray) -> bool:
    """Whether a column of numbers says no more than one of truth values, or is all 0."""
    kinds = (pa.types.is_floating, pa.types.is_integer)
    if not pa.types.is_boolean(truth.type) or not any(kind(column.type) for kind in kinds):
        return False
    number = column.cast(pa.float64())
    differs = pc.any(pc.not_equal(number, truth.cast(pa.int8()).cast(pa.float64()))).as_py()
    return not differs or not pc.any(pc.not_equal(number, 0.0)).as_py()


def _answers(name: str, column: str, table: pa.Table) -> pa.Array:
    """Return the column of answers in the type that MEDS gives it."""
    if column == "boolean_value":
        truth = read_truth(table[column], name, column, np.arange(1, len(table) + 1))
        return pa.array(truth > 0, mask=truth == NOT_KNOWN)
    return table[column].cast(VALUE_TYPES[column]).combine_chunks()


def _codes(unit: Unit) -> Iterator[Chunk]:
    table = files.open_parquet(os.path.join(unit.root, unit.files[0])).read()
    if "code" not in table.column_names:
        return
    parents = pa.nulls(len(table), pa.list_(pa.string()))
    if "parent_codes" in table.column_names:
        column = table["parent_codes"]
        nested = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        listed = column.to_pylist() if nested else [v and [v] for v in texts(column)[0].to_pylist()]
        parents = pa.array(listed, pa.list_(pa.string()))
    said = pa.nulls(len(table), pa.string())
    if "description" in table.column_names:
        said = texts(table["description"])[0]
    code = texts(table["code"])[0]
    yield Chunk(codes=pa.table({"code": code, "description": said, "parent_codes": parents}))


def _split_table(path: Path) -> Path | None:
    return sync.fetch(path / SPLITS_FILE) if (path / SPLITS_FILE).exists() else None


SOURCE: Final = Source(
    name="meds",
    description="a MEDS dataset: data/**/*.parquet, with its metadata/ and labels/ if there",
    options=MedsOptions,
    units=units,
    read=read,
    relative_time=lambda _: False,
    split_table=_split_table,
    walks=("data", "labels"),
)
