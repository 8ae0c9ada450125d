"""Published splits: a CSV or Parquet table of subject_id and split."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.schema import SPLIT_NAMES, SPLITS
from ehr_ray.sources.parsing.cells import by_unique, texts
from ehr_ray.sources.parsing.csv_files import SUFFIXES, csv_columns, listed, read_csv
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS
from ehr_ray.storage import files

COLUMNS: Final = ["subject_id", "split"]
BATCH_ROWS: Final = 1 << 20
_MAPPED: Final = pa.schema([pa.field("subject_id", pa.int64()), pa.field("split", pa.int8())])
_RENAMED: Final = b"renamed"


@dataclass(frozen=True, eq=False)
class SplitTable:
    """Who is in which split.

    Args:
        subject_id: ascending, each once, int64 [N].
        split: position in `SPLITS`, int8 [N].
        renamed: names in the table -> ours, where they differ.
    """

    subject_id: npt.NDArray[np.int64]
    split: npt.NDArray[np.int8]
    renamed: dict[str, str]

    def of(self, ids: npt.NDArray[np.int64]) -> pa.Array:
        """Return the split of each id, null where the table has none."""
        known = self.subject_id
        if not len(known):
            return pa.nulls(len(ids), pa.string())
        at = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return pa.array(SPLITS).take(pa.array(self.split[at], mask=known[at] != ids))


@lru_cache(maxsize=1)
def read_splits(path: str) -> SplitTable:
    """Return the splits of a table; ids are read as those of the events are.

    Raises `InputError` for a table of something else, a blank id, a name that is no split's, and a
    subject with two splits.
    """
    pieces = [(np.zeros(0, np.int64), np.zeros(0, np.int8))]
    used: dict[str, str] = {}
    start = 0
    for table in _tables(path):
        ids, split, names = _parsed(table, path, start)
        start += len(ids)
        pieces.append((ids, split))
        used |= {name.strip(): _ours(name) for name in names.unique().to_pylist()}
    ids, split, twice = once_each(*(np.concatenate(each) for each in zip(*pieces, strict=True)))
    check_once(path, twice)
    return SplitTable(ids, split, {name: ours for name, ours in used.items() if name != ours})


def read_split_batches(
    path: Path,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]]:
    """Yield (id, position in `SPLITS`) of some rows at a time of a table of splits.

    Raises `InputError` as `read_splits` does, but for a subject with two splits.
    """
    start = 0
    for table in _tables(str(path)):
        ids, split, _ = _parsed(table, str(path), start)
        start += len(ids)
        yield ids, split


def write_mapped(table: SplitTable, path: Path) -> None:
    """Write a table so that processes of a machine can share it; see `read_mapped`."""
    schema = _MAPPED.with_metadata({_RENAMED: json.dumps(table.renamed)})
    batch = pa.record_batch([table.subject_id, table.split], schema=schema)
    with (
        files.new_file(path) as partial,
        pa.OSFile(str(partial), "wb") as sink,
        pa.ipc.new_file(sink, schema) as writer,
    ):
        writer.write_batch(batch)


def read_mapped(path: Path) -> SplitTable:
    """Return what `write_mapped` wrote: its arrays are the file, not memory of the process."""
    with pa.memory_map(str(path)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    ids, split = (batch[name].to_numpy() for name in COLUMNS)
    return SplitTable(ids, split, json.loads(batch.schema.metadata[_RENAMED]))


def once_each(
    ids: npt.NDArray[np.int64], split: npt.NDArray[np.int8]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], int]:
    """Return (ids, ascending and each once; their splits; how often one has another split)."""
    order = np.lexsort((split, ids))
    ids, split = ids[order], split[order]
    first = np.append(True, ids[1:] != ids[:-1])[: len(ids)]
    return ids[first], split[first], int(np.sum(~first[1:] & (split[1:] != split[:-1])))


def check_once(path: str | Path, twice: int) -> None:
    """Raise `InputError` where subjects of a table are in more than one split."""
    if twice:
        raise InputError(
            f"{path}: {twice:,} subjects are in more than one split; give each subject one"
        )


def _parsed(
    table: pa.Table, path: str, start: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], pa.Array]:
    """Return (ids, positions in `SPLITS`, names) of rows of which `start` come before."""
    ids, blank, _ = subject_ids(table["subject_id"])
    names = texts(table["split"], "split")[0]
    if blank.any():
        row = start + int(np.argmax(blank)) + 1
        raise InputError(f"{path}: row {row} has no subject_id; give it one")
    split = by_unique(names, _position, np.int8)
    if np.any(split < 0):
        name = names[int(np.argmax(split < 0))].as_py() or ""
        raise InputError(
            f"{path}: split {name!r}: not one of {', '.join(SPLIT_NAMES)}; divide anew by --splits"
        )
    return ids, split, names


def _ours(name: str | None) -> str | None:
    return SPLIT_NAMES.get((name or "").strip().lower())


def _position(name: str | None) -> int:
    ours = _ours(name)
    return -1 if ours is None else SPLITS.index(ours)


def _tables(path: str) -> Iterator[pa.Table]:
    """Yield the two columns of a table, some rows at a time."""
    try:
        if path.endswith(SUFFIXES):
            _check_columns(path, csv_columns(path))
            for piece, _, rejects in read_csv(*os.path.split(path), COLUMNS):
                if len(rejects.table()):
                    raise InputError(f"{path}: rows with too many or too few cells; mend them")
                yield piece
            return
        file = files.open_parquet(path)
        _check_columns(path, file.schema_arrow.names)
        for batch in file.iter_batches(BATCH_ROWS, columns=COLUMNS):
            yield pa.table({name: batch[name] for name in COLUMNS})
    except READ_ERRORS as error:
        raise InputError(f"{path}: no table of subject_id and split ({error})") from None


def _check_columns(path: str, names: Sequence[str]) -> None:
    if missing := [column for column in COLUMNS if column not in names]:
        raise InputError(
            f"{path}: no table of subject_id and split: no column {missing[0]}, it has "
            f"{listed(names)}; name them so, in small letters, with commas between"
        )
