"""How far a risk is from right on the logit scale: intercept and slope, as functions of weights.

Cox's recalibration model: logit P(y = 1) = intercept + slope * logit p. A slope below 1 says that
risks are too extreme. With the slope held at 1 the intercept is calibration in the large: above 0
where more patients have the outcome than was predicted.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.weighted import Array, Statistic

STEPS: Final = 25
LARGEST: Final = 50.0
"""Log-odds beyond this are cut, and an intercept is none."""
STEEPEST: Final = 10.0
"""A slope beyond this is none: it still grows, since the classes are separated."""


def logit(probability: NDArray[Any]) -> Array:
    """Return log-odds, of probabilities kept 1e-6 from 0 and 1."""
    p = np.clip(np.asarray(probability, np.float64), 1e-6, 1 - 1e-6)
    odds: Array = np.log(p) - np.log1p(-p)
    return odds


def calibration_statistics(label: Array, probability: Array) -> dict[str, Statistic]:
    """Return `calibration_in_the_large` and `calibration_slope` as functions of row weights."""
    x, y = logit(probability), np.asarray(label, np.float64)
    return {
        "calibration_in_the_large": lambda w: _in_the_large(w, x, y),
        "calibration_slope": lambda w: _fitted(w, x, y)[1],
    }


def refitted(label: NDArray[Any], probability: NDArray[Any]) -> Callable[[NDArray[Any]], Array]:
    """Return the function from a risk to the one with intercept and slope fitted on these rows.

    Raises ValueError where they cannot be fitted: one class only, or classes that are separated.
    """
    x, y = logit(probability), np.asarray(label, np.float64)
    intercept, slope = (value[0] for value in _fitted(np.ones((1, len(y))), x, y))
    if not np.isfinite(intercept + slope):
        raise ValueError("intercept and slope cannot be fitted")
    return lambda p: 1 / (1 + np.exp(-(intercept + slope * logit(p))))


def _in_the_large(w: Array, x: Array, y: Array) -> Array:
    a = np.zeros(len(w))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(a[:, None] + x, -LARGEST, LARGEST)))
        slope = (w * p * (1 - p)).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            a = a + np.clip((w * (y - p)).sum(1) / slope, -2, 2)
    return _sound(a, w, y)


def _fitted(w: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Return (intercepts, slopes) of each row of weights, by Newton's method; NaN for none."""
    a, b = np.zeros(len(w)), np.ones(len(w))
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(a[:, None] + b[:, None] * x, -LARGEST, LARGEST)))
        v, r = w * p * (1 - p), w * (y - p)
        s0, s1, s2 = v.sum(1), v @ x, v @ x**2
        g0, g1 = r.sum(1), r @ x
        with np.errstate(divide="ignore", invalid="ignore"):
            det = s0 * s2 - s1**2
            a = a + np.clip((s2 * g0 - s1 * g1) / det, -2, 2)
            b = b + np.clip((s0 * g1 - s1 * g0) / det, -2, 2)
    a, b = _sound(a, w, y), _sound(b, w, y, STEEPEST)
    return np.where(np.isnan(b), np.nan, a), np.where(np.isnan(a), np.nan, b)


def _sound(value: Array, w: Array, y: Array, largest: float = LARGEST) -> Array:
    both = (w @ y > 0) & (w @ (1 - y) > 0)
    with np.errstate(invalid="ignore"):
        return np.where(both & (np.abs(value) < largest), value, np.nan)
