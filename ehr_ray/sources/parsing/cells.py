"""Columns as they come -> typed arrays, with a mark on every cell that is not what it should be.

A whole column is converted at once; cell by cell only where one of them does not convert. Measured
values are in `quantities`, identifiers of subjects in `identifiers`.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS
from ehr_ray.sources.source import EPOCH

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]
Mask = npt.NDArray[np.bool_]

BLANK: Final = frozenset({"", "nan", "na", "n/a", "<na>", "null", "none"})
"""Texts, in lower case, that stand for no value and no identifier."""

BLANK_CODES: Final = frozenset(
    {"", "nan", "NaN", "N/A", "n/a", "<NA>", "null", "NULL", "none", "None", "NONE", "NaT"}
)
"""Texts that stand for no code. Sodium is `Na` or `NA`, so those are codes."""

WHOLE: Final = 2**53
"""From here on a float does not tell whole numbers apart."""

_FLOAT_CODE: Final = re.compile(r"([1-9]\d{3,})\.0+")
"""An item number that a data frame made a float. ICD has `250.0` beside `250`: never 4 digits."""

_ZONED: Final = r"^\s*\d{4}-?(\d{2}-?\d{2}|W\d{2}(-?\d)?).\d{2}.*(Z|z|[+-]\d{2}(:?\d{2}){0,2})\s*$"

_PLAIN: Final = r"^[1-9]\d{3}-\d{2}-\d{2}[ T]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?$"
"""A time as both Arrow and Python read it."""

_MAX_MINUTES: Final = 1e9
MAX_FLOAT32: Final = float(np.finfo(np.float32).max)


def by_unique(column: pa.Array, parse: Callable[[Any], Any], dtype: Any) -> npt.NDArray[Any]:
    """Apply `parse` to every cell, calling it once for each distinct one."""
    encoded = column.dictionary_encode(null_encoding="encode")
    parsed = np.array([parse(cell) for cell in encoded.dictionary.to_pylist()], dtype)
    return parsed[encoded.indices.to_numpy(zero_copy_only=False)]


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return one contiguous array with dictionaries and large or view types undone."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def since_epoch(values: Floats, minutes: float) -> tuple[Times, Mask]:
    """Return (times, bad) of counts of `minutes` after `EPOCH`; NaN is NaT (a static event)."""
    values = values * minutes
    bad = np.abs(values) > _MAX_MINUTES
    blank = np.isnan(values) | bad
    values *= 60e6
    np.rint(values, out=values)
    values[blank] = 0.0
    times = np.datetime64(EPOCH, "us") + values.astype("timedelta64[us]")
    times[blank] = np.datetime64("NaT")
    return times, bad


def timestamps(column: pa.ChunkedArray | pa.Array, name: str = "time") -> tuple[Times, Mask]:
    """Return (times, bad): ISO 8601 text or Arrow dates; zones become UTC; blank is NaT.

    Raises `InputError` for a column of numbers, which need a unit.
    """
    column = flat(column)
    if pa.types.is_string(column.type):
        return _dates(column)
    if not pa.types.is_temporal(column.type) and not pa.types.is_null(column.type):
        raise InputError(f"column {name} holds {column.type}: say --time-unit minutes or hours")
    try:
        cast = column.cast(pa.timestamp("us"), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"column {name} holds {column.type}, not dates") from None
    return cast.to_numpy(zero_copy_only=False).astype("datetime64[us]"), np.zeros(len(cast), bool)


def _dates(column: pa.Array) -> tuple[Times, Mask]:
    """Read a whole column at once, and cell by cell only what is not plainly a time."""
    try:
        cast = _blank_to_null(column).cast(pa.timestamp("us"))
        return cast.to_numpy(zero_copy_only=False), np.zeros(len(column), bool)
    except pa.ArrowInvalid:
        pass
    plain = pc.match_substring_regex(column, _PLAIN).fill_null(False)
    try:
        cast = column.filter(plain).cast(pa.timestamp("us"))
    except pa.ArrowInvalid:  # such as a 13th month
        plain, cast = pa.repeat(pa.scalar(False), len(column)), pa.array([], pa.timestamp("us"))
    rest = ~plain.to_numpy(zero_copy_only=False)
    micros = np.empty(len(column), np.int64)
    micros[~rest] = cast.cast(pa.int64()).to_numpy()
    micros[rest] = by_unique(column.filter(pa.array(rest)), _micros, np.int64)
    bad = micros == _BAD
    return np.where(bad, _NAT, micros).astype("datetime64[us]"), bad


def zoned(column: pa.ChunkedArray | pa.Array) -> Mask:
    """Return which cells of a column of times, text or Arrow dates, say their zone; blank do not.

    >>> zoned(pa.array(["2024-01-01T09:00Z", "2024-01-01 09:00+02:00", "2024-01-01 09:00"]))
    array([ True,  True, False])
    """
    column = flat(column)
    if pa.types.is_string(column.type):
        try:
            _blank_to_null(column).cast(pa.timestamp("us"))  # which takes none with a zone
        except pa.ArrowInvalid:
            pass
        else:
            return np.zeros(len(column), bool)
        found = pc.match_substring_regex(column, _ZONED).fill_null(False)
    elif pa.types.is_timestamp(column.type) and column.type.tz:
        found = column.is_valid()
    else:
        return np.zeros(len(column), bool)
    return np.asarray(found.to_numpy(zero_copy_only=False))


def whole(column: pa.Array) -> tuple[npt.NDArray[np.int64], Mask, Mask]:
    """Return (numbers, blank, bad) of a column of strings; numbers are 0 where blank or bad."""
    filled = _blank_to_null(column)
    plain = pc.all(pc.match_substring_regex(filled, r"^-?[0-9]{1,18}$")).as_py()
    if plain is not False:
        blank = filled.is_null().to_numpy(zero_copy_only=False)
        ids = filled.cast(pa.int64()).fill_null(0).to_numpy()
        return ids, blank, np.zeros(len(column), bool)
    # Spreadsheets and data frames turn a column of identifiers with gaps into 276363.0.
    found = by_unique(column, _spelled_whole, object)
    blank = np.array([value is None for value in found], bool)
    bad = np.array([value is False for value in found], bool)
    return np.where(blank | bad, 0, found).astype(np.int64), blank, bad


def _spelled_whole(text: str | None) -> int | bool | None:
    text = (text or "").strip()
    if text.lower() in BLANK:
        return None
    match = re.fullmatch(r"([+-]?[0-9]{1,18})(\.0*)?", text)
    rounded = match is None or (match[2] and abs(int(match[1])) >= WHOLE)
    return False if rounded or match is None else int(match[1])


def _blank_to_null(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


_NAT: Final = np.iinfo(np.int64).min
_BAD: Final = _NAT + 1
_UNIX: Final = datetime(1970, 1, 1)


def _micros(text: str | None) -> int:
    text = (text or "").strip()
    if text.lower() in BLANK or text.lower() == "nat":
        return _NAT
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return _BAD
    if time.tzinfo is not None:
        time = time.astimezone(UTC).replace(tzinfo=None)
    delta = time - _UNIX
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def texts(column: pa.ChunkedArray | pa.Array, name: str = "code") -> tuple[pa.Array, Mask]:
    """Return (strings, blank): the codes of a column, null where blank.

    Numbers become their text; surrounding blanks go, and so does the `.0` of an item number, so
    that 220045, 220045.0 and ` 220045` are one code.
    """
    column = flat(column)
    refuse_rounded(column, f"cells of column {name}")
    encoded = spelled(column, name).dictionary_encode(null_encoding="encode")
    words = pa.array([_code(text) for text in encoded.dictionary.to_pylist()], pa.string())
    found = words.take(encoded.indices)
    return found, found.is_null().to_numpy(zero_copy_only=False)


def _code(text: str | None) -> str | None:
    text = (text or "").strip()
    match = _FLOAT_CODE.fullmatch(text)
    return match[1] if match else None if text in BLANK_CODES else text


def words(column: pa.Array, missing: str) -> tuple[pa.Array, Mask]:
    """Return (trimmed strings, blank) of a column of strings; `missing` stands for blank ones."""
    trimmed = pc.utf8_trim_whitespace(column)
    blank = pc.or_(pc.is_null(trimmed), pc.is_in(trimmed, pa.array(sorted(BLANK_CODES))))
    return pc.if_else(blank, missing, trimmed), blank.to_numpy(zero_copy_only=False)


def rounded(column: pa.Array) -> tuple[int, int]:
    """Return (how many cells of a column of floats may be rounded whole numbers, bits it holds).

    Floats of 16, 32 and 64 bits tell whole numbers apart below 2 to the power of 11, 24 and 53.
    """
    if not pa.types.is_floating(column.type):
        return 0, 0
    bits = {16: 11, 32: 24, 64: 53}[column.type.bit_width]
    large = pc.greater_equal(pc.abs(column.cast(pa.float64())), float(2**bits))
    return pc.sum(large).as_py() or 0, bits


def refuse_rounded(column: pa.Array, what: str) -> None:
    """Raise `InputError` where identifiers were rounded in floats of 16 or 32 bits."""
    count, bits = rounded(column)
    if count and 2**bits < WHOLE:
        raise InputError(
            f"{count} {what} went through floats of {column.type.bit_width} bits, which round "
            f"those of 2^{bits} and above: export them as text or as whole numbers"
        )


def spelled(column: pa.Array, name: str) -> pa.Array:
    """Return a column as strings; whole floats lose their `.0`, and NaN is null."""
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64())
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
        small = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), float(WHOLE)))
        ids = pc.if_else(small, values, 0.0).cast(pa.int64()).cast(pa.string())
        return pc.if_else(small, ids, values.cast(pa.string()))
    try:
        return column.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"column {name} holds {column.type}, not text") from None


def events_table(
    ids: npt.NDArray[np.int64], times: Times, codes: pa.Array, values: Floats
) -> pa.Table:
    """Return `EVENTS` rows; NaT and NaN become null."""
    narrow = values.astype(np.float32)
    columns = [ids, pa.array(times), codes, pa.array(narrow, pa.float32(), mask=np.isnan(narrow))]
    return pa.table(columns, schema=EVENTS)
