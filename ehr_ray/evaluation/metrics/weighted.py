"""Metrics of a binary risk score as functions of row weights.

Weights make a bootstrap resample a row of counts, and a row known by chance one that counts for
more: probabilities are sorted and binned once, and all resamples are computed together. A metric
that the rows cannot define (AUROC with one class only) is NaN.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.events.auroc import sorted_auroc, tied_order

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Weights float[R, n] of R resamples (1 = the data as they are) to one value a resample."""

METRICS: Final = (
    "auroc",
    "auprc",
    "min_se_ppv",
    "sensitivity",
    "specificity",
    "ppv",
    "brier",
    "ece",
    "event2",
    "prevalence",
)
ECE_BINS: Final = 10
_HOSMER_FLOOR: Final = 0.001
"""Added to each variance of `event2`, as the challenge does, so that a risk of 0 divides too."""


def statistics(label: Array, probability: Array, threshold: float = 0.5) -> dict[str, Statistic]:
    """Each of `METRICS` as a function of row weights, sorted and binned once."""
    order, ties = tied_order(probability)
    y, p = label[order], probability[order]
    called = (probability >= threshold).astype(np.float64)
    ranked: dict[str, Callable[[Array, Array, NDArray[np.bool_]], Array]] = {
        "auroc": sorted_auroc,
        "auprc": _average_precision,
    }
    out: dict[str, Statistic] = {
        name: lambda w, f=function: f(w[:, order], y, ties)  # type: ignore[misc]
        for name, function in ranked.items()
    }
    for name in ("sensitivity", "specificity", "ppv", "min_se_ppv"):
        out[name] = partial(_at_threshold, name=name, y=label, called=called)
    out["brier"] = partial(mean_of, x=np.square(probability - label))
    bins = _equal_mass_bins(p)
    out["ece"] = lambda w: _ece(w[:, order], y - p, bins)
    out["event2"] = lambda w: _event2(w[:, order], y, p, bins)
    out["prevalence"] = partial(mean_of, x=label)
    return {name: out[name] for name in METRICS}


def checked(label: NDArray[Any], probability: NDArray[Any]) -> tuple[Array, Array]:
    """Return labels and probabilities as float64 [n]; ValueError where a metric has no meaning."""
    y = np.asarray(label, dtype=np.float64).ravel()
    p = np.asarray(probability, dtype=np.float64).ravel()
    if y.size != p.size:
        raise ValueError(f"{y.size} labels but {p.size} probabilities")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1: drop rows without a label first")
    if not np.isfinite(p).all():
        raise ValueError("probabilities must be finite: the model returned NaN or infinity")
    return y, p


def divide(a: Array, b: Array) -> Array:
    """Return a / b, NaN where b is not above 0."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)


def _average_precision(w: Array, y: Array, ties: NDArray[np.bool_]) -> Array:
    """Sum over thresholds of precision times the recall gained (as scikit-learn defines it)."""
    hits = np.cumsum((w * y)[:, ::-1], axis=1)
    called = np.cumsum(w[:, ::-1], axis=1)
    # Ascending ties end at `ties`; read from the top, each group ends where the next begins.
    ends = np.append(ties[:-1][::-1], True)
    hits, called = hits[:, ends], called[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    precision = np.nan_to_num(divide(hits, called))
    return divide((gained * precision).sum(axis=1), hits[:, -1])


def _at_threshold(w: Array, *, name: str, y: Array, called: Array) -> Array:
    """Sensitivity, specificity, ppv or their minimum; NaN where the denominator is empty."""
    true_positive, positive, flagged = w @ (y * called), w @ y, w @ called
    if name == "specificity":
        return divide(w @ ((1 - y) * (1 - called)), w @ (1 - y))
    if name == "sensitivity":
        return divide(true_positive, positive)
    if name == "ppv":
        return divide(true_positive, flagged)
    sensitivity = divide(true_positive, positive)
    # A model that flags nobody has no precision; its sensitivity, and so the minimum, is 0.
    return np.minimum(sensitivity, np.nan_to_num(divide(true_positive, flagged)))


def mean_of(w: Array, *, x: Array) -> Array:
    """Return the mean of x [n] under each set of weights [R, n]."""
    return divide(w @ x, w.sum(axis=1))


def _equal_mass_bins(sorted_probability: Array) -> NDArray[np.int64]:
    """Bin of each sorted row; equal probabilities share the bin of the first of them."""
    n = sorted_probability.size
    first = np.searchsorted(sorted_probability, sorted_probability, side="left")
    return first * ECE_BINS // max(n, 1)


def _ece(w: Array, residual: Array, bins: NDArray[np.int64]) -> Array:
    sums = np.stack([w @ (residual * (bins == b)) for b in range(ECE_BINS)], axis=1)
    return divide(np.abs(sums).sum(axis=1), w.sum(axis=1))


def _event2(w: Array, y: Array, p: Array, bins: NDArray[np.int64]) -> Array:
    """Hosmer-Lemeshow H over the range of the bins' mean risks; NaN where all risks are equal."""
    inside = [w * (bins == b) for b in np.unique(bins)]
    size = np.stack([v.sum(axis=1) for v in inside], axis=1)
    observed = np.stack([v @ y for v in inside], axis=1)
    expected = np.stack([v @ p for v in inside], axis=1)
    risk = divide(expected, size)
    variance = np.nan_to_num(expected * (1.0 - risk)) + _HOSMER_FLOOR
    total = ((observed - expected) ** 2 / variance).sum(axis=1)
    # A resample may leave a bin empty; the range is of those it has.
    return divide(total, np.nanmax(risk, axis=1) - np.nanmin(risk, axis=1))
