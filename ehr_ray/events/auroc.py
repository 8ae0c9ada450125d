"""The product's one AUROC: here, since the check for leaks needs it as much as an evaluation does.

n rows, R sets of weights. Scikit-learn's `roc_auc_score` gives the same number for one set; it
checks its input at length, which counts over thousands of columns or resamples.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def auroc(label: npt.NDArray[Any], score: npt.NDArray[Any]) -> float:
    """Return the probability that a positive row scores above a negative one, ties counted half.

    `label` is true or 1 for the positive rows, [n]; `score` float [n]. NaN with one class only.
    """
    order, ties = tied_order(score)
    rows = np.ones((1, len(order)))
    return float(sorted_auroc(rows, np.asarray(label, np.float64)[order], ties)[0])


def tied_order(score: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the rows in ascending order of score, [n], and which are the last of equal scores."""
    order = np.argsort(score, kind="stable")
    ascending = np.asarray(score)[order]
    last = np.append(ascending[1:] != ascending[:-1], True)[: len(order)]
    return order, last


def sorted_auroc(weight: Array, label: Array, ties: npt.NDArray[np.bool_]) -> Array:
    """Return the AUROC under each set of weights, [R]; NaN where a class has no weight.

    `weight` [R, n] and `label` [n] (0 or 1) are in the order of `tied_order`, which gives `ties`.
    """
    positive = np.cumsum(weight * label, axis=1)[:, ties]
    negative = np.cumsum(weight * (1.0 - label), axis=1)[:, ties]
    if not positive.shape[1]:
        return np.full(len(weight), np.nan)
    below = np.diff(negative, axis=1, prepend=0.0)
    pairs = (np.diff(positive, axis=1, prepend=0.0) * (negative - 0.5 * below)).sum(axis=1)
    total = positive[:, -1] * negative[:, -1]
    return np.divide(pairs, total, out=np.full(total.shape, np.nan), where=total > 0)
