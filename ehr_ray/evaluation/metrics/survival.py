"""Measures of outcomes with censoring: concordance, and scores at a horizon that weigh the known.

N rows. `risk` is larger where the event comes sooner; `weight` is that of `censoring_weights`.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.binary import statistics
from ehr_ray.events.outcomes import EVENT

Array = NDArray[np.float64]

WEIGHTED: Final = ("auroc", "auprc", "brier")


def c_index(days: NDArray[Any], state: NDArray[Any], risk: NDArray[Any]) -> float:
    """Return Harrell's concordance: the share of comparable pairs in which risk is right.

    A pair is comparable where one has the event before the other is last seen; ties of risk count
    half. A competing event ends the time at risk as censoring does. NaN without such a pair.
    """
    known = np.isfinite(days)
    time, score = np.asarray(days, float)[known], np.asarray(risk, float)[known]
    event = np.asarray(state)[known] == EVENT
    later = (time[None, :] > time[:, None]) | ((time[None, :] == time[:, None]) & ~event[None, :])
    comparable = event[:, None] & later
    if not comparable.any():
        return float("nan")
    higher = score[:, None] > score[None, :]
    tied = score[:, None] == score[None, :]
    return float((comparable * (higher + 0.5 * tied)).sum() / comparable.sum())


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
