"""Subject identifiers of any kind -> the 64-bit integers of a cohort."""

import hashlib
import re
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.sources.parsing.cells import Mask, by_unique, flat

HASHED_FROM: Final = 2**62
"""Ids from here on are hashes of names; an integer this large is hashed like a name."""

NAMES: Final = pa.schema([pa.field("subject_id", pa.int64()), pa.field("name", pa.string())])

_INTEGER: Final = re.compile(r"([+-]?\d{1,19})(\.0*)?")


def subject_id(name: str) -> int:
    """Return the id for a name: the number it spells, else a stable 63-bit hash.

    >>> subject_id("276363.0"), subject_id("P-17")
    (276363, 6410143732081118009)
    """
    match = _INTEGER.fullmatch(name.strip())
    if match and abs(int(match[1])) < HASHED_FROM:
        return int(match[1])
    digest = hashlib.blake2b(name.strip().encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % HASHED_FROM + HASHED_FROM


def subject_ids(column: pa.ChunkedArray | pa.Array) -> tuple[npt.NDArray[np.int64], Mask, pa.Table]:
    """Return (ids, blank, `NAMES` rows of the hashed ones) for a column of identifiers.

    Whole floats are integers; anything else goes by its text.
    """
    column = flat(column)
    if pa.types.is_integer(column.type):
        blank = column.is_null().to_numpy(zero_copy_only=False)
        ids = column.fill_null(0).cast(pa.int64()).to_numpy()
        if not np.any(np.abs(ids) >= HASHED_FROM):
            return ids, blank, NAMES.empty_table()
    if not pa.types.is_string(column.type):
        column = column.cast(pa.string())
    blank = by_unique(column, lambda name: not (name or "").strip(), np.bool_)
    ids = by_unique(column, lambda name: subject_id(name or ""), np.int64)
    return ids, blank, _names(column, ids, blank)


def _names(column: pa.Array, ids: npt.NDArray[np.int64], blank: Mask) -> pa.Table:
    hashed = (ids >= HASHED_FROM) & ~blank
    if not hashed.any():
        return NAMES.empty_table()
    pairs = pa.table([ids[hashed], column.filter(pa.array(hashed))], schema=NAMES)
    # Grouping by both keeps two names of one id apart, so that the collision is seen.
    return pairs.group_by(["subject_id", "name"], use_threads=False).aggregate([])
