"""Published splits: a CSV or Parquet table of subject_id and split."""

import os
from dataclasses import dataclass
from functools import lru_cache
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
    ids, blank, _ = subject_ids(table["subject_id"])
    names = texts(table["split"], "split")[0]
    if blank.any():
        raise InputError(f"{path}: row {int(np.argmax(blank)) + 1} has no subject_id; give it one")
    split = by_unique(names, _position, np.int8)
    if np.any(split < 0):
        name = names[int(np.argmax(split < 0))].as_py() or ""
        raise InputError(
            f"{path}: split {name!r}: not one of {', '.join(SPLIT_NAMES)}; divide anew by --splits"
        )
    order = np.lexsort((split, ids))
    ids, split = ids[order], split[order]
    first = np.append(True, ids[1:] != ids[:-1])[: len(ids)]
    twice = int(np.sum(~first[1:] & (split[1:] != split[:-1])))
    if twice:
        raise InputError(
            f"{path}: {twice:,} subjects are in more than one split; give each subject one"
        )
    used = {name.strip(): SPLIT_NAMES[name.strip()] for name in names.unique().to_pylist()}
    return SplitTable(
        ids[first], split[first], {name: ours for name, ours in used.items() if name != ours}
    )


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
