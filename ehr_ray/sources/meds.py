"""Any MEDS dataset: divided into shards anew, its splits, labels and descriptions kept.

Of its event columns `subject_id`, `time`, `code` and `numeric_value` are read; a cohort has no
others.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import texts, timestamps
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.labels import VALUE_TYPES, label_rows
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS, read_row_groups, split_row_groups
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.parsing.rows import clean_rows
from ehr_ray.sources.source import LABEL_VALUES, Chunk, Source, Unit
from ehr_ray.sources.splits import ALIASES
from ehr_ray.storage import files

SPLITS_FILE: Final = "metadata/subject_splits.parquet"
CODES_FILE: Final = "metadata/codes.parquet"


@dataclass(frozen=True)
class MedsOptions:
    """This source has no options."""


def units(path: Path, options: MedsOptions) -> list[Unit]:  # noqa: ARG001
    """List row groups of `data/**/*.parquet`, then labels and code metadata."""
    root = str(path)
    shards = _parquet_files(root, "data")
    if not shards:
        raise InputError(f"--input {path}: no data/**/*.parquet, so no MEDS dataset")
    uses = (SPLITS_FILE,) if (path / SPLITS_FILE).exists() else ()
    found = []
    for name in shards:
        folder = name.split("/")[1]
        split = folder if not uses and folder in ALIASES else None
        found += split_row_groups(Unit(root, (name,), split=split, uses=uses))
    found += [Unit(root, (name,), "labels") for name in _parquet_files(root, "labels")]
    if (path / CODES_FILE).exists():
        found.append(Unit(root, (CODES_FILE,), "codes"))
    return found


def _parquet_files(root: str, below: str) -> list[str]:
    found = []
    for folder, folders, names in os.walk(os.path.join(root, below)):
        folders.sort()
        relative = os.path.relpath(folder, root)
        names = sorted(f for f in names if f.endswith(".parquet") and not f.startswith("."))
        found += [f"{relative}/{name}" for name in names]
    return found


def read(unit: Unit, options: MedsOptions) -> Iterator[Chunk]:  # noqa: ARG001
    """Yield events, labels or descriptions of one file."""
    readers = {"events": _events, "labels": _labels, "codes": _codes}
    try:
        yield from readers[unit.kind](unit)
    except (*READ_ERRORS, InputError) as error:
        rejects = Rejects()
        rejects.file(unit.files[0], f"unreadable: {error}")
        yield Chunk(rejects=rejects.table(), files_read=1)
    else:
        # A file in several units counts once.
        yield Chunk(files_read=int(unit.start == 0))


def _events(unit: Unit) -> Iterator[Chunk]:
    needed = ["subject_id", "time", "code"]
    for first, table in read_row_groups(unit, needed, ("numeric_value",)):
        rejects = Rejects()
        ids, blank, names = subject_ids(table["subject_id"])
        events, kept = clean_rows(
            (ids, blank),
            table["time"],
            table["code"],
            table["numeric_value"] if "numeric_value" in table.column_names else None,
            read_time=timestamps,
            place=lambda i, first=first: (unit.files[0], first + i + 1),  # type: ignore[misc]
            rejects=rejects,
        )
        split = pa.nulls(len(events), pa.string())
        if unit.split:
            split = pa.repeat(unit.split, len(events))
        elif unit.uses:
            split = _split_of(os.path.join(unit.root, unit.uses[0]), ids[kept])
        yield Chunk(
            events=events.append_column("split", split),
            rejects=rejects.table(),
            rows_read=len(table),
            names=names,
        )


def _split_of(path: str, ids: np.ndarray) -> pa.Array:
    known, splits = _subject_splits(path)
    at = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
    missing = known[at] != ids if len(known) else np.ones(len(ids), bool)
    return splits.take(pa.array(at, mask=missing))


@lru_cache(maxsize=1)
def _subject_splits(path: str) -> tuple[np.ndarray, pa.Array]:
    try:
        table = files.open_parquet(path).read(["subject_id", "split"])
        ids, _, _ = subject_ids(table["subject_id"])
        order = np.argsort(ids, kind="stable")
        return ids[order], texts(table["split"])[0].take(pa.array(order))
    except (*READ_ERRORS, KeyError) as error:
        raise InputError(f"{SPLITS_FILE} is no table of subject_id and split ({error})") from None


def _labels(unit: Unit) -> Iterator[Chunk]:
    """Yield the labels of `labels/<task>.parquet` or `labels/<task>/<n>.parquet`."""
    name = unit.files[0]
    parts = name.removesuffix(".parquet").split("/")[1:]
    task = "-".join(parts[:-1] or parts)
    table = files.open_parquet(os.path.join(unit.root, name)).read()
    columns = [column for column in LABEL_VALUES if column in table.column_names]
    present = [column for column in columns if table[column].null_count < len(table)]
    missing = {"subject_id", "prediction_time"} - set(table.column_names)
    if missing or not (present or len(table) == 0):
        raise InputError(f"labels need subject_id, prediction_time and one of {LABEL_VALUES}")
    if not present:
        return
    ids, blank, _ = subject_ids(table["subject_id"])
    times, bad = timestamps(table["prediction_time"])
    rejects = Rejects()
    unusable = blank | bad | np.isnat(times)
    rejects.rows(unusable, lambda i: (name, i + 1), lambda _: "no subject_id or prediction_time")
    kept = pa.array(~unusable)
    values = table[present[0]].cast(VALUE_TYPES[present[0]]).combine_chunks().filter(kept)
    rows = label_rows(ids[~unusable], values, times=pa.array(times[~unusable]), column=present[0])
    yield Chunk(labels={task: rows}, rejects=rejects.table(), rows_read=len(table))


def _codes(unit: Unit) -> Iterator[Chunk]:
    table = files.open_parquet(os.path.join(unit.root, unit.files[0])).read()
    if {"code", "description"} <= set(table.column_names):
        codes, descriptions = texts(table["code"])[0], texts(table["description"])[0]
        said = pa.table({"code": codes, "description": descriptions})
        yield Chunk(codes=said.drop_null())


SOURCE: Final = Source(
    name="meds",
    description="a MEDS dataset: data/**/*.parquet, with its metadata/ and labels/ if there",
    options=MedsOptions,
    units=units,
    read=read,
    relative_time=lambda _: False,
)
