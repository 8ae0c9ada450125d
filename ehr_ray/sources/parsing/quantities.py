"""Cells that hold a measured value, as people and machines write it -> numbers and what was odd.

A cell that is no number loses the value, never the event. `>100` keeps its number and its sign,
`1,234` is a number whose thousands are marked, and U+2212 is a minus.
"""

import math
import re
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import BLANK, MAX_FLOAT32, Floats, Mask, flat

Decimal = Literal[".", ","]
Kinds = npt.NDArray[np.uint8]

PLAIN: Final = 0
"""A number, or nothing."""
UNREADABLE: Final = 1
DECIMAL_COMMA: Final = 2
"""No number, but one if its comma is a decimal mark."""
GROUPED: Final = 3
FIRST_SIGN: Final = 4
"""Kinds from here on are signs of `SIGNS`."""

SIGNS: Final = ("<", "<=", ">", ">=")

_SIGN_OF: Final = {
    **{sign: sign for sign in SIGNS},
    "=<": "<=",
    "=>": ">=",
    "≤": "<=",
    "≥": ">=",
    "less than": "<",
    "greater than": ">",
}
_SIGNED: Final = re.compile(r"(<=|=<|>=|=>|<|>|≤|≥|less than|greater than)\s*(.+)", re.I | re.S)
_GROUPS: Final = {
    ".": re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?"),
    ",": re.compile(r"[-+]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?"),
}
_NUMBER: Final = {".": r"^-?[0-9]+(\.[0-9]+)?$", ",": r"^-?[0-9]+(,[0-9]+)?$"}
_HEAD: Final = 10_000
"""Cells that are asked whether most numbers come again, and so are read once each."""
_COMMA: Final = re.compile(r"[-+]?\d+,\d+")


def quantities(
    column: pa.ChunkedArray | pa.Array, name: str = "value", decimal: Decimal = "."
) -> tuple[Floats, Kinds]:
    """Return (values, kinds) of a column, both [N]: NaN where there is no value.

    Numbers beyond float32 are `UNREADABLE`. Raises `InputError` for a column type that holds no
    numbers.
    """
    column = flat(column)
    if pa.types.is_string(column.type):
        return _of_text(column, decimal)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan), np.zeros(len(column), np.uint8)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise InputError(f"column {name} holds {kind}, not numbers")
    return _fitting(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def numbers(
    column: pa.ChunkedArray | pa.Array, name: str = "value", decimal: Decimal = "."
) -> tuple[Floats, Mask]:
    """Return (values, bad) of a column that must hold numbers: blank is NaN, all else is bad."""
    values, kinds = quantities(column, name, decimal)
    bad = kinds != PLAIN
    return np.where(bad, np.nan, values) if bad.any() else values, bad


def _fitting(values: Floats) -> tuple[Floats, Kinds]:
    bad = np.abs(values) > MAX_FLOAT32
    if not bad.any():  # Arrow's own may not be written to, as some callers do
        values = values if values.flags.writeable else values.copy()
        return values, np.zeros(len(values), np.uint8)
    return np.where(bad, np.nan, values), np.where(bad, UNREADABLE, PLAIN).astype(np.uint8)


def _of_text(column: pa.Array, decimal: Decimal) -> tuple[Floats, Kinds]:
    head = column.slice(0, _HEAD)
    if 2 * pc.count_distinct(head, mode="all").as_py() > len(head):
        return _of_words(column, decimal)
    encoded = column.dictionary_encode(null_encoding="encode")
    values, kinds = _of_words(encoded.dictionary, decimal)
    at = encoded.indices.to_numpy(zero_copy_only=False)
    return values[at], kinds[at]


def _of_words(column: pa.Array, decimal: Decimal) -> tuple[Floats, Kinds]:
    """Read a whole column at once, and cell by cell only what is not plainly a number."""
    if decimal == ".":
        blank = pa.scalar(None, pa.string())
        try:
            cast = pc.if_else(pc.equal(column, ""), blank, column).cast(pa.float64())
            return _fitting(cast.to_numpy(zero_copy_only=False))
        except pa.ArrowInvalid:
            pass
    plain = pc.match_substring_regex(column, _NUMBER[decimal]).fill_null(False)
    try:
        found = column.filter(plain)
        if decimal != ".":
            found = pc.replace_substring(found, decimal, ".")
        cast = found.cast(pa.float64())
    except pa.ArrowInvalid:  # hundreds of digits
        return _by_cell(column, decimal)
    values, kinds = np.full(len(column), np.nan), np.zeros(len(column), np.uint8)
    rest = ~plain.to_numpy(zero_copy_only=False)
    values[~rest], kinds[~rest] = _fitting(cast.to_numpy(zero_copy_only=False))
    values[rest], kinds[rest] = _by_cell(column.filter(pa.array(rest)), decimal)
    return values, kinds


def _by_cell(column: pa.Array, decimal: Decimal) -> tuple[Floats, Kinds]:
    encoded = column.dictionary_encode(null_encoding="encode")
    parsed = [quantity(text, decimal) for text in encoded.dictionary.to_pylist()]
    at = encoded.indices.to_numpy(zero_copy_only=False)
    values = np.array([value for value, _ in parsed], np.float64)
    return values[at], np.array([kind for _, kind in parsed], np.uint8)[at]


def quantity(text: str | None, decimal: Decimal = ".") -> tuple[float, int]:
    """Return (value, kind) of one cell.

    >>> quantity("> 1,000"), quantity("−2.5"), quantity("POSITIVE"), quantity("7,4")
    ((1000.0, 6), (-2.5, 0), (nan, 1), (nan, 2))
    """
    text = (text or "").strip().replace("\u2212", "-")
    if text.lower() in BLANK:
        return math.nan, PLAIN
    signed = _SIGNED.fullmatch(text)
    value, kind = _plain(signed[2] if signed else text, decimal)
    if signed and not math.isnan(value):
        kind = FIRST_SIGN + SIGNS.index(_SIGN_OF[signed[1].lower()])
    return value, kind


def _plain(text: str, decimal: Decimal) -> tuple[float, int]:
    thousands = "," if decimal == "." else "."
    kind = PLAIN
    if thousands in text:
        if not _GROUPS[decimal].fullmatch(text):
            comma = decimal == "." and _COMMA.fullmatch(text)
            return math.nan, DECIMAL_COMMA if comma else UNREADABLE
        text, kind = text.replace(thousands, ""), GROUPED
    try:
        value = float(text.replace(decimal, ".")) if "_" not in text else math.inf
    except ValueError:
        return math.nan, UNREADABLE
    return (value, kind) if abs(value) <= MAX_FLOAT32 else (math.nan, UNREADABLE)


def sign_text(kind: int, value: Any) -> str:
    """Return an inequality as text, such as `<0.01`."""
    return f"{SIGNS[kind - FIRST_SIGN]}{value:.7g}"
