"""Measures of outcomes with censoring: concordance, and scores at a horizon that weigh the known.

N rows. `risk` is larger where the event comes sooner; `weight` is that of `censoring_weights`.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.weighted import Statistic, statistics
from ehr_ray.events.outcomes import EVENT

Array = NDArray[np.float64]

WEIGHTED: Final = ("auroc", "auprc", "brier")


def c_index(days: NDArray[Any], state: NDArray[Any], risk: NDArray[Any]) -> float:
    """Return Harrell's concordance: the share of comparable pairs in which risk is right.

    A pair is comparable where one has the event before the other is last seen; one last seen, but
    without the event, on the day of the event is seen after it. Ties of risk count half. A
    competing event ends the time at risk as censoring does. NaN without such a pair. Takes
    O(N log N) time and O(N) memory.
    """
    known = np.isfinite(days)
    time, score = np.asarray(days, float)[known], np.asarray(risk, float)[known]
    event = np.asarray(state)[known] == EVENT
    # Those who come after an event in this order are comparable with it, but for the events of its
    # own day; these follow by rising risk, so among them there are only ties to take off again.
    order = np.lexsort((score, ~event, time))
    time, event = time[order], event[order]
    _, rank = np.unique(score[order], return_inverse=True)
    _, day = np.unique(time, return_inverse=True)
    own_day = 2 * day + ~event
    comparable = _above(own_day)[event].sum()
    if not comparable:
        return float("nan")
    tied = _later_equal(rank) - _later_equal(own_day * len(rank) + rank)
    return float((_later_smaller(rank) + 0.5 * tied)[event].sum() / comparable)


def concordance(days: NDArray[Any], state: NDArray[Any], risk: NDArray[Any]) -> Statistic:
    """Return `c_index` as a function of row weights, for resamples: O(N^2) memory.

    Days must be known.
    """
    time, score = np.asarray(days, float), np.asarray(risk, float)
    event = np.asarray(state) == EVENT
    later = (time > time[:, None]) | ((time == time[:, None]) & ~event)
    pairs = (event[:, None] & later).astype(np.float64)
    right = pairs * ((score < score[:, None]) + 0.5 * (score == score[:, None]))

    def share(weights: Array) -> Array:
        comparable = ((weights @ pairs) * weights).sum(1)
        agreeing = ((weights @ right) * weights).sum(1)
        none = np.full(len(weights), np.nan)
        return np.divide(agreeing, comparable, out=none, where=comparable > 0)

    return share


def time_in_bins(time: NDArray[Any], edges: Sequence[float]) -> Array:
    """Return times from 0 on, [N], as time spent between edges, [N, K]; the last bin has no end.

    >>> time_in_bins(np.array([0.5, 5.0]), (1.0, 4.0)).tolist()
    [[0.5, 0.0, 0.0], [1.0, 3.0, 1.0]]
    """
    start = np.array([0.0, *edges])
    width = np.diff(start, append=np.inf)
    return np.clip(np.asarray(time, np.float64)[:, None] - start, 0.0, width)


def _above(day: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many entries of ascending `day` are above each."""
    return len(day) - np.searchsorted(day, day, side="right")


def _later_equal(key: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many entries behind each are equal to it."""
    order = np.argsort(key, kind="stable")
    ascending = key[order]
    count = np.empty(len(key), np.int64)
    count[order] = np.searchsorted(ascending, ascending, side="right") - np.arange(len(key)) - 1
    return count


def _later_smaller(rank: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many entries behind each are smaller, by merge sort: ranks are below their number.

    Where two sorted halves are merged, the entries of the right half that come before one of the
    left half are smaller than it.
    """
    size = 1 << (len(rank) - 1).bit_length()
    value: NDArray[np.int64] = np.append(rank, np.full(size - len(rank), len(rank)))
    row: NDArray[np.int64] = np.arange(size)
    count, width = np.zeros(size, np.int64), 1
    while width < size:
        value, row = value.reshape(-1, 2 * width), row.reshape(-1, 2 * width)
        merged = np.argsort(value, axis=1, kind="stable")
        value, row = (np.take_along_axis(a, merged, axis=1) for a in (value, row))
        left = merged < width
        count[row[left]] += np.cumsum(~left, axis=1)[left]
        width *= 2
    return count[: len(rank)]


def weighted_scores(
    label: NDArray[Any], probability: NDArray[Any], weight: NDArray[Any]
) -> dict[str, float]:
    """Return AUROC (the time-dependent AUC at the horizon), AUPRC and Brier score under weights.

    Rows of weight 0, whose label is unknown, do not count. (Uno et al. 2007; Graf et al. 1999.)
    """
    known = np.asarray(weight) > 0
    y, p = np.asarray(label, float)[known], np.asarray(probability, float)[known]
    found = statistics(y, p)
    rows = np.asarray(weight, float)[known][None]
    return {name: float(found[name](rows)[0]) for name in WEIGHTED}
