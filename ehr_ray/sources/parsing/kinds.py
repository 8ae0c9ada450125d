"""What a column of a table holds, and how its cells are read."""

from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.sources.parsing.cells import Mask, timestamps, whole, words
from ehr_ray.sources.parsing.quantities import numbers

Kind = Literal["whole", "time", "number", "quantity", "concept", "text"]
"""An identifier, a date with or without a clock, a number that a row is nothing without, a measured
value that a row may lose, an identifier that is a word of codes, or words."""

_FLOAT: Final = r"^([0-9]+)\.0*$"

UNKNOWN: Final = "UNK"
"""Stands for a blank word in a code, as in MEDS conversions."""

REASONS: Final = {"whole": "a whole number", "time": "a time", "number": "a finite number"}


def parse(column: pa.ChunkedArray, kind: Kind) -> tuple[Any, Mask, Mask]:
    """Return (values, blank, bad) of a column of strings, all of its length; no quantities.

    "whole" gives int64, 0 where blank or bad; "time" datetime64[us], NaT there; "number" float64,
    NaN there; "text" an Arrow array of trimmed strings, `UNKNOWN` where blank, never bad; "concept"
    the same without the `.0` that data frames write after ids.
    """
    column = column.combine_chunks()
    if kind == "whole":
        return whole(column)
    if kind in ("text", "concept"):
        named, blank = words(column, UNKNOWN)
        if kind == "concept":
            named = pc.replace_substring_regex(named, _FLOAT, r"\1")
        return named, blank, np.zeros(len(column), bool)
    if kind == "time":
        times, bad = timestamps(column)
        return times, np.isnat(times) & ~bad, bad
    values, bad = numbers(column)
    return values, np.isnan(values) & ~bad, bad
