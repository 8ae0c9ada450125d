"""Published splits: a CSV or Parquet table of subject_id and split."""

import os
from collections.abc import Iterator
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
from ehr_ray.sources.parsing.csv_files import SUFFIXES, csv_columns, read_csv
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS
from ehr_ray.storage import files

COLUMNS: Final = ["subject_id", "split"]
BATCH_ROWS: Final = 1 << 20


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
        at = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
        missing = known[at] != ids if len(known) else np.ones(len(ids), bool)
        return pa.array(SPLITS).take(pa.array(self.split)).take(pa.array(at, mask=missing))


@lru_cache(maxsize=2)
def read_splits(path: str) -> SplitTable:
    """Return the splits of a table; ids are read as those of the events are.

    Raises `InputError` for a table of something else, a blank id, a name that is no split's, and a
    subject with two splits.
    """
    table = _read(path)
    ids, split, names = _parsed(table, path)
    ids, split, twice = once_each(ids, split)
    check_once(path, twice)
    used = {name.strip(): SPLIT_NAMES[name.strip()] for name in names.unique().to_pylist()}
    return SplitTable(ids, split, {name: ours for name, ours in used.items() if name != ours})


def read_split_batches(
    path: Path,
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int8]]]:
    """Yield (id, position in `SPLITS`) of some rows at a time of a Parquet table of splits.

    Raises `InputError` as `read_splits` does, but for a subject with two splits.
    """
    start = 0
    try:
        for batch in files.open_parquet(path).iter_batches(BATCH_ROWS, columns=COLUMNS):
            ids, split, _ = _parsed(pa.table({n: batch[n] for n in COLUMNS}), str(path), start)
            start += len(ids)
            yield ids, split
    except (*READ_ERRORS, KeyError) as error:
        raise InputError(f"{path}: no table of subject_id and split ({error})") from None


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


def _position(name: str | None) -> int:
    ours = SPLIT_NAMES.get((name or "").strip())
    return -1 if ours is None else SPLITS.index(ours)


def _read(path: str) -> pa.Table:
    try:
        if path.endswith(SUFFIXES):
            csv_columns(path)  # an empty file is named as such
            root, name = os.path.split(path)
            pieces = list(read_csv(root, name, COLUMNS))
            bad = [rejects.table() for _, _, rejects in pieces]
            if any(map(len, bad)):
                raise InputError(f"{path}: rows with too many or too few cells; mend them")
            return pa.concat_tables([piece for piece, _, _ in pieces]).combine_chunks()
        return files.open_parquet(path).read(COLUMNS)
    except (*READ_ERRORS, KeyError) as error:
        raise InputError(f"{path}: no table of subject_id and split ({error})") from None
