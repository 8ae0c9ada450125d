"""Operating points of a risk score, chosen on one split and applied to others. N rows."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.weighted import checked


def choose_threshold(label: NDArray[Any], probability: NDArray[Any]) -> float:
    """The threshold that maximises min(sensitivity, precision) on these rows.

    It lies half-way between the last score called positive and the next lower one; ties go to
    the higher threshold. Without a positive row nothing can be chosen: 0.5.
    """
    y, p = checked(label, probability)
    if not y.any():
        return 0.5
    order = np.argsort(-p, kind="stable")
    score, hits = p[order], np.cumsum(y[order])
    last_of_tie = np.append(score[1:] != score[:-1], True)
    ranks = np.arange(1, y.size + 1)
    smaller = np.minimum(hits / y.sum(), hits / ranks)[last_of_tie]
    levels = score[last_of_tie]
    best = int(np.argmax(smaller))
    following = levels[best + 1] if best + 1 < levels.size else levels[best]
    middle = 0.5 * (levels[best] + following)
    # Two neighbouring floats have no middle: rounding would call the lower one positive too.
    return float(middle if middle > following else levels[best])


def f1(label: NDArray[Any], called: NDArray[Any]) -> float:
    """Return the harmonic mean of sensitivity and precision; 0 where nobody is rightly called."""
    y, c = np.asarray(label) > 0, np.asarray(called) > 0
    total = y.sum() + c.sum()
    return float(2 * (y & c).sum() / total) if total else 0.0


def best_f1_threshold(label: NDArray[Any], probability: NDArray[Any]) -> float:
    """Return the probability from which on rows are called positive for the highest F1 here."""
    y, p = np.asarray(label) > 0, np.asarray(probability, float)
    if not y.any():
        return 0.5
    order = np.argsort(-p, kind="stable")
    hits, called = np.cumsum(y[order]), np.arange(1, len(y) + 1)
    last = np.append(p[order][1:] != p[order][:-1], True)
    scores = np.where(last, 2 * hits / (y.sum() + called), -1.0)
    best = int(np.argmax(scores))
    level = p[order][best]
    lower = p[order][best + 1 :]
    return float(0.5 * (level + lower[0])) if lower.size else float(level)
