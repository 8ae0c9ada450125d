"""Columns as they come -> typed arrays, with a mark on every cell that is not what it should be."""

import math
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

BLANK: Final = frozenset({"", "nan", "na", "null"})
"""Texts, in lower case, that stand for no value."""

_MAX_MINUTES: Final = 1e9
MAX_FLOAT32: Final = float(np.finfo(np.float32).max)


def by_unique(column: pa.Array, parse: Callable[[Any], Any], dtype: Any) -> npt.NDArray:
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


def numbers(column: pa.ChunkedArray | pa.Array, name: str = "value") -> tuple[Floats, Mask]:
    """Return (values, bad): blank is NaN; bad is text that is no number, or beyond float32.

    Raises `InputError` for a column type that holds no numbers.
    """
    column = flat(column)
    if pa.types.is_null(column.type):
        values = np.full(len(column), np.nan)
    elif pa.types.is_string(column.type):
        values = by_unique(column, _number, np.float64)
    elif (
        pa.types.is_integer(column.type)
        or pa.types.is_floating(column.type)
        or pa.types.is_boolean(column.type)
        or pa.types.is_decimal(column.type)
    ):
        column = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
        values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    else:
        raise InputError(f"column {name} holds {column.type}, not numbers")
    bad = np.abs(values) > MAX_FLOAT32
    return np.where(bad, np.nan, values), bad


def _number(text: str | None) -> float:
    """Return NaN for a blank cell and infinity for one that is no number."""
    text = (text or "").strip()
    if text.lower() in BLANK:
        return math.nan
    try:
        value = float(text) if "_" not in text else math.inf
    except ValueError:
        return math.inf
    return value if value == value else math.inf


def since_epoch(values: Floats, minutes: float) -> tuple[Times, Mask]:
    """Return (times, bad) of counts of `minutes` after `EPOCH`; NaN is NaT (a static event)."""
    values = values * minutes
    bad = np.abs(values) > _MAX_MINUTES
    blank = np.isnan(values) | bad
    micros = np.rint(np.where(blank, 0.0, values) * 60e6).astype("timedelta64[us]")
    times = np.datetime64(EPOCH, "us") + micros
    times[blank] = np.datetime64("NaT")
    return times, bad


def timestamps(column: pa.ChunkedArray | pa.Array, name: str = "time") -> tuple[Times, Mask]:
    """Return (times, bad): ISO 8601 text or Arrow dates; zones become UTC; blank is NaT.

    Raises `InputError` for a column of numbers, which need a unit.
    """
    column = flat(column)
    if pa.types.is_string(column.type):
        micros = by_unique(column, _micros, np.int64)
        bad = micros == _BAD
        times = np.where(bad, _NAT, micros).astype("datetime64[us]")
        return times, bad
    if not pa.types.is_temporal(column.type) and not pa.types.is_null(column.type):
        raise InputError(f"column {name} holds {column.type}: say --time-unit minutes or hours")
    try:
        cast = column.cast(pa.timestamp("us"), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"column {name} holds {column.type}, not dates") from None
    return cast.to_numpy(zero_copy_only=False).astype("datetime64[us]"), np.zeros(len(cast), bool)


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
    """Return (strings, blank): text of a column; numbers become their text."""
    column = flat(column)
    if not pa.types.is_string(column.type):
        try:
            column = column.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise InputError(f"column {name} holds {column.type}, not text") from None
    blank = pc.equal(pc.utf8_trim_whitespace(column), "").fill_null(True)
    return column, blank.to_numpy(zero_copy_only=False)


def events_table(
    ids: npt.NDArray[np.int64], times: Times, codes: pa.Array, values: Floats
) -> pa.Table:
    """Return `EVENTS` rows; NaT and NaN become null."""
    narrow = values.astype(np.float32)
    columns = [ids, pa.array(times), codes, pa.array(narrow, pa.float32(), mask=np.isnan(narrow))]
    return pa.table(columns, schema=EVENTS)
