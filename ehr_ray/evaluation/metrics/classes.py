"""Metrics of predicted classes as functions of row weights, as `weighted` has those of risks.

n rows, K classes, R sets of weights.
"""

from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.weighted import Array, Statistic, divide, mean_of
from ehr_ray.events.auroc import sorted_auroc, tied_order

METRICS: Final = ("macro_auroc", "accuracy", "macro_f1", "log_loss")
"""One class against the rest, the share of rows whose likeliest class is theirs, F1, and the mean
of minus the logarithm of the probability that a row's class was given."""
_LEAST: Final = 1e-6
"""Least probability in a log loss: a class that train lacks has none."""


def statistics(label: NDArray[np.int64], probability: NDArray[np.floating]) -> dict[str, Statistic]:
    """Each of `METRICS` of places of classes [n] and probabilities [n, K].

    Macro metrics are means over the classes that have rows. A resample without one of these, and
    the AUROC of rows of one class, is NaN.
    """
    y, p = np.asarray(label, np.int64), np.asarray(probability, np.float64)
    called = p.argmax(axis=1)
    there = np.unique(y)
    of_row = np.clip(p[np.arange(len(y)), y], _LEAST, 1.0)
    ranked = [(*tied_order(p[:, k]), (y == k).astype(np.float64)) for k in there]
    return {
        "macro_auroc": lambda w: _mean([sorted_auroc(w[:, o], k[o], t) for o, t, k in ranked], w),
        "accuracy": partial(mean_of, x=(called == y).astype(np.float64)),
        "macro_f1": lambda w: _mean([_f1(w, y == k, called == k) for k in there], w),
        "log_loss": partial(mean_of, x=-np.log(of_row)),
    }


def _f1(w: Array, mine: NDArray[np.bool_], called: NDArray[np.bool_]) -> Array:
    positive = w @ mine
    found = divide(2.0 * (w @ (mine & called)), positive + w @ called)
    return np.where(positive > 0, found, np.nan)


def _mean(by_class: list[Array], w: Array) -> Array:
    return np.mean(by_class, axis=0) if by_class else np.full(len(w), np.nan)
