"""Cells of a CSV block as text -> one typed array a column, and which cells are not what they say.

A whole column is converted at once; cell by cell (`ehr_ray.sources.parsing.cells`) only where one
of them does not convert, so that a bad cell costs its own block alone.
"""

import re
from collections.abc import Callable
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.sources.parsing.cells import (
    BLANK,
    MAX_FLOAT32,
    Floats,
    Mask,
    Times,
    by_unique,
    numbers,
    timestamps,
)

Kind = Literal["whole", "time", "number", "text"]
"""What a column holds: an identifier, a date with or without a clock, a quantity, or words."""

UNKNOWN: Final = "UNK"
"""Stands for a blank word in a code, as in MEDS conversions of MIMIC-IV."""

REASONS: Final = {"whole": "a whole number", "time": "a time", "number": "a finite number"}

_WHOLE: Final = re.compile(r"([+-]?\d{1,18})(\.0*)?")


def parse(column: pa.ChunkedArray, kind: Kind) -> tuple[Any, Mask, Mask]:
    """Return (values, blank, bad) of a column of strings, all of its length.

    "whole" gives int64, 0 where blank or bad; "time" datetime64[us], NaT there; "number" float64,
    NaN there; "text" an Arrow array of trimmed strings, `UNKNOWN` where blank, never bad.
    """
    return _PARSERS[kind](column.combine_chunks())


def _whole(column: pa.Array) -> tuple[npt.NDArray[np.int64], Mask, Mask]:
    try:
        cast = _blank_to_null(column).cast(pa.int64())
    except pa.ArrowInvalid:
        # Spreadsheets and data frames turn a column of identifiers with gaps into 276363.0.
        found = by_unique(column, _spelled, object)
        blank = np.array([value is None for value in found], bool)
        bad = np.array([value is False for value in found], bool)
        return np.where(blank | bad, 0, found).astype(np.int64), blank, bad
    blank = cast.is_null().to_numpy(zero_copy_only=False)
    return cast.fill_null(0).to_numpy(), blank, np.zeros(len(cast), bool)


def _spelled(text: str) -> int | Literal[False] | None:
    text = text.strip()
    if text.lower() in BLANK:
        return None
    match = _WHOLE.fullmatch(text)
    return int(match[1]) if match else False


def _time(column: pa.Array) -> tuple[Times, Mask, Mask]:
    try:
        times = _blank_to_null(column).cast(pa.timestamp("us")).to_numpy(zero_copy_only=False)
        bad = np.zeros(len(times), bool)
    except pa.ArrowInvalid:
        times, bad = timestamps(column)
    return times, np.isnat(times) & ~bad, bad


def _number(column: pa.Array) -> tuple[Floats, Mask, Mask]:
    try:
        values = _blank_to_null(column).cast(pa.float64()).to_numpy(zero_copy_only=False)
        bad = np.abs(values) > MAX_FLOAT32
        values = np.where(bad, np.nan, values)
    except pa.ArrowInvalid:
        values, bad = numbers(column)
    return values, np.isnan(values) & ~bad, bad


def _text(column: pa.Array) -> tuple[pa.Array, Mask, Mask]:
    trimmed = pc.utf8_trim_whitespace(column)
    blank = pc.equal(trimmed, "")
    filled = pc.if_else(blank, UNKNOWN, trimmed)
    return filled, blank.to_numpy(zero_copy_only=False), np.zeros(len(column), bool)


def _blank_to_null(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


_PARSERS: Final[dict[Kind, Callable[[pa.Array], tuple[Any, Mask, Mask]]]] = {
    "whole": _whole,
    "time": _time,
    "number": _number,
    "text": _text,
}
