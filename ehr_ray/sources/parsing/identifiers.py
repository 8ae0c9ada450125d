"""Subject identifiers of any kind -> the 64-bit integers of a cohort.

Every spelling is kept with its id, so that two texts of one id are seen: harmless ones (blanks
around it, `.0`) are told, others (`007` and `7`) are refused, since they may be two patients.
"""

import hashlib
import re
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import BLANK, WHOLE, Mask, flat, refuse_rounded, rounded, spelled

HASHED_FROM: Final = 2**62
"""Ids from here on are hashes of names; an integer this large is hashed like a name."""

NAMES: Final = pa.schema([pa.field("subject_id", pa.int64()), pa.field("name", pa.string())])

_INTEGER: Final = re.compile(r"([+-]?[0-9]{1,19})(\.0*)?")
_POWERS: Final = np.array([0, *(10**n for n in range(1, 19))], np.int64)
"""The least number of so many digits and one more, 0 of one."""
_ROUNDED: Final = re.compile(r"[+-]?[0-9](\.[0-9]+)?[eE]\+[0-9]+")


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


def plain_name(name: str) -> str:
    """Return a name without what nobody means: blanks around it, and the `.0` of a float."""
    match = _INTEGER.fullmatch(name.strip())
    return match[1] if match else name.strip()


def subject_ids(column: pa.ChunkedArray | pa.Array) -> tuple[npt.NDArray[np.int64], Mask, pa.Table]:
    """Return (ids, blank, `NAMES` rows, one for each id and spelling) of a column of identifiers.

    Raises `InputError` where an id was rounded on its way through a float: 2^53 and above in a
    column of floats (2^24 of 32 bits), or written like `1e+10` or `9007199254740993.0`.
    """
    column = flat(column)
    if pa.types.is_integer(column.type):
        largest = pc.max(column).as_py()
        smallest = pc.min(column).as_py()
        if largest is None or max(abs(largest), abs(smallest)) < HASHED_FROM:
            blank = column.is_null().to_numpy(zero_copy_only=False)
            ids = column.fill_null(0).cast(pa.int64()).to_numpy()
            known = pa.array(np.unique(ids[~blank]))
            return ids, blank, pa.table([known, known.cast(pa.string())], schema=NAMES)
    refuse_rounded(column, "subject ids")
    _refuse_rounded(rounded(column)[0])
    column = spelled(column, "of subject ids")
    numbers = _plain_numbers(column)
    if numbers is not None:
        known = pc.unique(numbers)
        blank = np.zeros(len(column), bool)
        return (
            numbers.to_numpy().copy(),
            blank,
            pa.table([known, known.cast(pa.string())], schema=NAMES),
        )
    encoded = column.dictionary_encode(null_encoding="encode")
    at = encoded.indices.to_numpy()
    spelled_ids = [name or "" for name in encoded.dictionary.to_pylist()]
    _refuse_rounded(sum(map(_is_rounded, spelled_ids)))
    empty = np.array([name.strip().lower() in BLANK for name in spelled_ids], bool)
    each = np.array([subject_id(name) for name in spelled_ids], np.int64)
    pairs = pa.table([each, pa.array(spelled_ids, pa.string())], schema=NAMES)
    return each[at], empty[at], pairs.filter(pa.array(~empty))


def _plain_numbers(column: pa.StringArray) -> pa.Int64Array | None:
    """Return the numbers of a column where each cell is its number's own text, else None.

    A text that is read as a number of as many digits as it has letters can only be that, but for
    hexadecimal ones (`0xFFFFF`), which Arrow reads too.
    """
    if column.null_count:
        return None
    text = column.buffers()[2]
    if text is not None and ((np.frombuffer(text, np.uint8) | 0x20) == ord("x")).any():
        return None
    try:
        numbers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    values = numbers.to_numpy()
    digits = pc.binary_length(column).to_numpy() - (values < 0)
    if len(digits) and not 1 <= digits.min() <= digits.max() < len(_POWERS):
        return None
    size = np.abs(values)
    own = (size >= _POWERS[digits - 1]) & (size < _POWERS[digits])
    return numbers if own.all() else None


def _is_rounded(name: str) -> bool:
    name = name.strip()
    match = _INTEGER.fullmatch(name)
    through_float = match is not None and match[2] and abs(int(match[1])) >= WHOLE
    return bool(through_float or _ROUNDED.fullmatch(name))


def _refuse_rounded(count: int) -> None:
    if count:
        raise InputError(
            f"{count} subject ids went through floating-point numbers, which round those of 2^53 "
            "and above and write 1e+10: export them as text or as whole numbers"
        )


def spellings(names: pa.Table) -> tuple[int, int, int]:
    """Return how many ids of `NAMES` rows have several names: (harmless, doubtful, by hash).

    Harmless names differ in blanks and `.0` alone; doubtful ones are the same number, such as 007
    and 7; the others are different names with one hash.
    """
    distinct = names.group_by(NAMES.names, use_threads=False).aggregate([])
    counts = distinct.group_by("subject_id", use_threads=False).aggregate([("name", "count")])
    several = counts.filter(pc.greater(counts["name_count"], 1))["subject_id"]
    rows = distinct.filter(pc.is_in(distinct["subject_id"], several.combine_chunks()))
    plain: dict[int, set[str]] = {}
    for sid, name in zip(*rows.to_pydict().values(), strict=True):
        plain.setdefault(sid, set()).add(plain_name(name))
    clashes = [sid for sid, found in plain.items() if len(found) > 1]
    hashed = sum(not all(map(_INTEGER.fullmatch, plain[sid])) for sid in clashes)
    return len(plain) - len(clashes), len(clashes) - hashed, hashed
