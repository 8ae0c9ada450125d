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
"""Log-odds beyond this are cut, and calibration in the large is none."""
FIT_STEPS: Final = 200
"""Of intercept and slope: a handful are usual; classes that hardly overlap take some dozens."""
SAME: Final = 1e-6
"""Log-odds that differ by less are one risk: single precision holds no more."""


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

    Raises ValueError where they cannot be fitted: one class only, the same risk for all, or classes
    that a cut of the risk divides.
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
    """Return (intercepts, slopes) of each row of weights, by maximum likelihood; NaN for none.

    However steep, a slope is one, as that of risks which hardly differ; there is none where the
    likelihood still grows without end (`_overlap`).
    """
    a, b = np.full(len(w), np.nan), np.full(len(w), np.nan)
    fit = np.flatnonzero(_overlap(w, x, y))
    if not len(fit):
        return a, b
    # About log-odds of mean 0 and deviation 1, so that steps are alike, however flat the risks.
    middle, width = x.mean(), x.std()
    beta = _newton(w[fit], (x - middle) / width, y)
    b[fit] = beta[1] / width
    a[fit] = beta[0] - b[fit] * middle
    return a, b


def _overlap(w: Array, x: Array, y: Array) -> NDArray[np.bool_]:
    """Return where the likelihood has a highest point: no cut of the risk divides the classes.

    So there are rows of both classes, and some of each are above some of the other. A tie at the
    cut is not enough (quasi-complete separation, Albert and Anderson 1984), nor is it where all
    risks are the same.
    """
    found = np.zeros(len(w), bool)
    ones, zeros = (np.flatnonzero(y == value) for value in (1, 0))
    if not len(ones) or not len(zeros):
        return found
    for k, weights in enumerate(w > 0):
        one, zero = x[ones[weights[ones]]], x[zeros[weights[zeros]]]
        if len(one) and len(zero):
            found[k] = one.max() - zero.min() > SAME and zero.max() - one.min() > SAME
    return found


def _newton(w: Array, z: Array, y: Array) -> Array:
    """Return (intercept, slope) on `z`, [2, B]: Newton's steps, halved where they do not climb."""
    total = w.sum(1)
    share = (w @ y) / total
    beta = np.stack([np.log(share / (1 - share)), np.zeros(len(w))])
    step = np.zeros_like(beta)
    best = np.full(len(w), -np.inf)
    going = np.arange(len(w))
    for _ in range(FIT_STEPS):
        v = w[going]
        eta = beta[0, going, None] + step[0, going, None] + (beta + step)[1, going, None] * z
        high = (v * (y * eta - np.logaddexp(0, eta))).sum(1)
        climbs = high >= best[going]
        up, down = going[climbs], going[~climbs]
        step[:, down] /= 2
        beta[:, up] += step[:, up]
        best[up] = high[climbs]
        v, eta = v[climbs], eta[climbs]
        p = 1 / (1 + np.exp(-np.clip(eta, -LARGEST, LARGEST)))
        r, h = v * (y - p), v * p * (1 - p)
        # A trace on the diagonal keeps a step finite; it ends where the gradient does all the same.
        trace = 1e-9 * total[up]
        s0, s1, s2 = h.sum(1) + trace, h @ z, h @ z**2 + trace
        g0, g1 = r.sum(1), r @ z
        step[:, up] = np.stack([s2 * g0 - s1 * g1, s0 * g1 - s1 * g0]) / (s0 * s2 - s1**2)
        going = going[(np.abs(step) > 1e-9 * (1 + np.abs(beta))).any(0)[going]]
        if not len(going):
            break
    return beta


def _sound(value: Array, w: Array, y: Array) -> Array:
    both = (w @ y > 0) & (w @ (1 - y) > 0)
    with np.errstate(invalid="ignore"):
        return np.where(both & (np.abs(value) < LARGEST), value, np.nan)
