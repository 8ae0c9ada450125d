"""Metrics of predicted numbers as functions of row weights, as `weighted` has those of risks.

n rows, R sets of weights.
"""

from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.weighted import Array, Statistic, divide, mean_of
from ehr_ray.events.auroc import tied_order

METRICS: Final = ("mae", "rmse", "r2", "spearman")
"""Mean absolute error and root mean squared error, in the unit of the labels, the coefficient of
determination, and the rank correlation."""


def statistics(
    label: NDArray[np.floating], predicted: NDArray[np.floating]
) -> dict[str, Statistic]:
    """Each of `METRICS` of labels and predictions, float [n].

    Of labels that are all equal there is no `r2`, and no `spearman` where either are: NaN.
    """
    y, p = (np.asarray(values, np.float64) for values in (label, predicted))
    square = np.square(p - y)
    return {
        "mae": partial(mean_of, x=np.abs(p - y)),
        "rmse": lambda w: np.sqrt(mean_of(w, x=square)),
        "r2": lambda w: 1.0 - divide(mean_of(w, x=square), _variance(w, y)),
        "spearman": lambda w: _correlation(w, _ranks(w, y), _ranks(w, p)),
    }


def _variance(w: Array, y: Array) -> Array:
    centred = y - y.mean() if y.size else y
    total = w.sum(axis=1)
    found = divide(w @ np.square(centred), total) - np.square(divide(w @ centred, total))
    # What rounding leaves of equal values is no variance.
    return np.where(found > 1e-12 * np.square(centred).max(initial=0.0), found, 0.0)


def _ranks(w: Array, x: Array) -> Array:
    """Return the rank of each row under each set of weights [R, n]; equal ones share the middle."""
    order, last = tied_order(x)
    upto = np.cumsum(w[:, order], axis=1)[:, last]
    middle = upto - 0.5 * np.diff(upto, axis=1, prepend=0.0)
    group: NDArray[np.int64] = np.cumsum(last) - last  # a group ends where `last` is true
    ranks = np.empty_like(w)
    ranks[:, order] = middle[:, group]
    return ranks


def _correlation(w: Array, a: Array, b: Array) -> Array:
    total = w.sum(axis=1, keepdims=True)
    a, b = (x - (w * x).sum(axis=1, keepdims=True) / total for x in (a, b))
    spread = (w * a * a).sum(axis=1) * (w * b * b).sum(axis=1)
    return divide((w * a * b).sum(axis=1), np.sqrt(spread))
