"""Columns of raw rows -> valid events, and the reasons why the others are not."""

import re
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.sources.parsing.cells import Mask, Times, events_table, texts
from ehr_ray.sources.parsing.quantities import Decimal, quantities
from ehr_ray.sources.parsing.quarantine import Rejects

Place = Callable[[int], tuple[str, int]]
"""Row number -> (file, line)."""

ReadTime = Callable[[pa.ChunkedArray], tuple[Times, Mask]]
"""A time column -> (times with NaT where blank, mask of bad cells)."""

_NUMBER: Final = re.compile(r"'?[-+]?\d+([.,]\d*)?'?")


def clean_rows(
    ids: tuple[npt.NDArray[np.int64], Mask],
    time: pa.ChunkedArray,
    code: pa.ChunkedArray,
    value: pa.ChunkedArray | None,
    *,
    read_time: ReadTime,
    place: Place,
    rejects: Rejects,
    decimal: Decimal = ".",
    of_numbers: str = "",
    zones_of: str = "",
) -> tuple[pa.Table, Mask]:
    """Return (`EVENTS` rows in the given order, mask of the rows kept); refuse the others.

    Refused: a blank id or code, a time that is none. A value that is blank or no finite number is
    an event without one, and the latter is counted; a blank time is a static event. `ids` comes
    with a mask of blanks; `of_numbers` is added to the reason of a refused time that is a number.
    With `zones_of`, a file and a column, times with and without a zone are counted as its own.
    Raises `InputError` where a column's type is wrong as a whole.
    """
    subjects, blank_id = ids
    times, bad_time = read_time(time)
    if zones_of:
        rejects.zones(time, times, zones_of)
    codes, blank_code = texts(code)
    value = pa.nulls(len(subjects)) if value is None else value
    values, kinds = quantities(value, decimal=decimal)

    def hint(cell: str) -> str:
        return of_numbers if _NUMBER.fullmatch(cell) else ""

    bad = np.zeros(len(subjects), bool)
    for mask, reason in (
        (blank_id, lambda i: "subject id is blank"),  # noqa: ARG005
        (blank_code, lambda i: "code is blank"),  # noqa: ARG005
        (bad_time, lambda i: f"time {(cell := _show(time[i]))} is not a time{hint(cell)}"),
    ):
        rejects.rows(mask & ~bad, place, reason)
        bad |= mask
    if bad.any():
        kept = pa.array(~bad)
        subjects, times, codes = subjects[~bad], times[~bad], codes.filter(kept)
        values, kinds = values[~bad], kinds[~bad]
    events = events_table(subjects, times, codes, values)
    rejects.odd_values(events, kinds)
    return events, ~bad


def _show(cell: pa.Scalar) -> str:
    value = cell.as_py()
    return repr(value) if isinstance(value, str) else str(value)
