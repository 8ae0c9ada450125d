"""Simple features of one patient: the input of every baseline a model is compared with."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

STATISTICS: Final = (
    "first",
    "last",
    "mean",
    "min",
    "max",
    "std",
    "count",
    "time_of_last",
    "mean_last_quarter",
    "static",
)
"""Columns of one code, in order; `static` holds the value of a static event of that code."""

WINDOW_STATISTICS: Final = ("mean", "min", "max", "count")
"""Columns of one code in one window, in order."""
TREND_STATISTICS: Final = ("slope", "last_minus_first", "time_since_last")
"""Columns of one code over its whole course, in order."""

_COUNT: Final = STATISTICS.index("count")
_STATIC: Final = STATISTICS.index("static")


def simple_features(
    minute: NDArray[np.floating],
    code: NDArray[np.integer],
    value: NDArray[np.floating],
    static: NDArray[np.bool_],
    *,
    num_codes: int,
    end_minute: float,
) -> NDArray[np.float32]:
    """Summarise the events of one patient up to `end_minute` as float32[num_codes * 10].

    Missing is NaN, except `count`, which is 0. `count` counts events with or without a value;
    all other statistics see values only, so a value-less code has a count and nothing else.
    `std` is the population standard deviation, `time_of_last` is in minutes, and
    `mean_last_quarter` averages the values at or after 3/4 of `end_minute`. Of values at one
    minute the last in the given order is the later one. A static event fills `static` alone,
    with 1 where it has no value. Events after `end_minute` are dropped, because nothing
    after the prediction time may be seen, and so are codes below 0 (see `code_lookup`).

    Args:
        minute: float[E], minutes since the origin, negative before it; ignored for static events.
        code: int[E], ids in [0, num_codes), or negative for a code that has no features.
        value: float[E], NaN where the event has none.
        static: bool[E].
        num_codes: number of codes that have features.
        end_minute: minute of the prediction, inclusive; also the end of the window.
    """
    table = np.full((num_codes, len(STATISTICS)), np.nan)
    table[:, _COUNT] = 0.0
    known = code >= 0
    rows = np.flatnonzero(known & static)
    if rows.size:
        given = value[rows]
        table[code[rows], _STATIC] = np.where(np.isnan(given), 1.0, given)
    timed = known & ~static & (minute <= end_minute)
    if timed.any():
        table[:, _COUNT] = np.bincount(code[timed], minlength=num_codes)
        rows = np.flatnonzero(timed & ~np.isnan(value))
        if rows.size:
            _fill(table, minute[rows], code[rows], value[rows], 0.75 * end_minute)
    return table.astype(np.float32).ravel()


def window_features(
    minute: NDArray[np.floating],
    code: NDArray[np.integer],
    value: NDArray[np.floating],
    static: NDArray[np.bool_],
    *,
    num_codes: int,
    end_minute: float,
    windows: Sequence[float],
) -> NDArray[np.float32]:
    """Summarise the events of one patient by window as float32[num_codes * W * 4].

    Rows are code by code, window by window, with `WINDOW_STATISTICS`; reshape to
    [num_codes, W, 4]. Missing is NaN, except `count`, which is 0 and counts events with or
    without a value. A window holds its start and not its end, the last one both. Static events,
    events outside all windows or after `end_minute`, and codes below 0 are dropped.

    Args:
        minute: float[E], minutes since the origin.
        code: int[E], ids in [0, num_codes), or negative for a code that has no features.
        value: float[E], NaN where the event has none.
        static: bool[E].
        num_codes: number of codes that have features.
        end_minute: minute of the prediction, inclusive.
        windows: W + 1 ascending minutes that bound the windows.
    """
    edges = np.asarray(windows, dtype=np.float64)
    num_windows = len(edges) - 1
    table = np.full((num_codes * num_windows, len(WINDOW_STATISTICS)), np.nan)
    window = np.searchsorted(edges, minute, side="right") - 1
    window[minute == edges[-1]] = num_windows - 1
    kept = (code >= 0) & ~static & (minute <= end_minute) & (window >= 0) & (window < num_windows)
    cell = code[kept].astype(np.int64) * num_windows + window[kept]
    table[:, 3] = np.bincount(cell, minlength=len(table))
    given = value[kept]
    valued = ~np.isnan(given)
    order = np.argsort(cell[valued], kind="stable")
    cell, x = cell[valued][order], given[valued][order].astype(np.float64)
    if cell.size:
        starts, sizes = _runs(cell)
        table[cell[starts], 0] = np.add.reduceat(x, starts) / sizes
        table[cell[starts], 1] = np.minimum.reduceat(x, starts)
        table[cell[starts], 2] = np.maximum.reduceat(x, starts)
    return table.astype(np.float32).ravel()


def trend_features(
    minute: NDArray[np.floating],
    code: NDArray[np.integer],
    value: NDArray[np.floating],
    static: NDArray[np.bool_],
    *,
    num_codes: int,
    end_minute: float,
) -> NDArray[np.float32]:
    """Return where each code is going as float32[num_codes * 3], with `TREND_STATISTICS`.

    `slope` is that of least squares, per hour, and NaN without two minutes that differ;
    `last_minus_first` is NaN with one value; `time_since_last` is in minutes before `end_minute`.
    Values alone are seen. Arguments are those of `simple_features`.
    """
    table = np.full((num_codes, len(TREND_STATISTICS)), np.nan)
    kept = np.flatnonzero((code >= 0) & ~static & (minute <= end_minute) & ~np.isnan(value))
    if not kept.size:
        return table.astype(np.float32).ravel()
    kept = kept[np.lexsort((minute[kept], code[kept]))]
    code, time, x = code[kept], minute[kept] / 60.0, value[kept].astype(np.float64)
    starts, sizes = _runs(code)
    last = starts + sizes - 1
    time = time - np.repeat(np.add.reduceat(time, starts) / sizes, sizes)
    spread = np.add.reduceat(time * time, starts)
    shared = np.add.reduceat(time * x, starts)
    present = code[starts]
    moved = time[last] > time[starts]
    table[present, 0] = np.where(moved, shared / np.where(moved, spread, 1.0), np.nan)
    table[present, 1] = np.where(sizes > 1, x[last] - x[starts], np.nan)
    table[present, 2] = end_minute - minute[kept][last]
    return table.astype(np.float32).ravel()


def _runs(sorted_ids: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where each run of equal ids starts, and how long it is."""
    starts = np.flatnonzero(np.concatenate(([True], sorted_ids[1:] != sorted_ids[:-1])))
    return starts, np.diff(starts, append=sorted_ids.size)


def _fill(
    table: NDArray[np.float64],
    minute: NDArray[np.floating],
    code: NDArray[np.integer],
    value: NDArray[np.floating],
    quarter_start: float,
) -> None:
    order = np.lexsort((minute, code))
    code, time, x = code[order], minute[order], value[order].astype(np.float64)
    starts, sizes = _runs(code)
    ends = starts + sizes
    mean = np.add.reduceat(x, starts) / sizes
    squares = np.square(x - np.repeat(mean, sizes))
    late = time >= quarter_start
    num_late = np.add.reduceat(late, starts, dtype=np.int64)
    late_sum = np.add.reduceat(np.where(late, x, 0.0), starts)
    columns = (
        x[starts],
        x[ends - 1],
        mean,
        np.minimum.reduceat(x, starts),
        np.maximum.reduceat(x, starts),
        np.sqrt(np.add.reduceat(squares, starts) / sizes),
        time[ends - 1],
        np.where(num_late > 0, late_sum / np.maximum(num_late, 1), np.nan),
    )
    present = code[starts]
    for position, column in zip((0, 1, 2, 3, 4, 5, 7, 8), columns, strict=True):
        table[present, position] = column


def select_codes(
    patient_counts: NDArray[np.integer], max_codes: int = 200, min_patients: int = 1
) -> NDArray[np.int64]:
    """Choose the codes that get features: those that most train patients have.

    Args:
        patient_counts: int[V], number of train patients with at least one event of each code.
        max_codes: keep at most this many; ties go to the lower id.
        min_patients: drop codes that fewer train patients have.

    Returns:
        The kept ids in ascending order.
    """
    order = np.argsort(-np.asarray(patient_counts, dtype=np.int64), kind="stable")[:max_codes]
    return np.sort(order[np.asarray(patient_counts)[order] >= min_patients])


def code_lookup(selected: NDArray[np.integer], num_codes: int) -> NDArray[np.int64]:
    """Map vocabulary ids to feature ids: int64[num_codes], -1 where a code was not selected.

    >>> code_lookup(np.array([1, 3]), 4).tolist()
    [-1, 0, -1, 1]
    """
    lookup = np.full(num_codes, -1, dtype=np.int64)
    lookup[selected] = np.arange(len(selected))
    return lookup
