"""Survival baseline: Cox regression (1972) with a ridge penalty, ties as Breslow has them.

N rows, F features, D what is made of them for a linear model.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ehr_ray.evaluation.tasks.hazard_trees import Rows
from ehr_ray.evaluation.tasks.probe import few_threads, preparation

Array = NDArray[np.float64]

PENALTIES: Final = tuple(float(p) for p in np.logspace(1, -3, 9))
"""Of half the squared weights, beside the mean over events; the strongest first."""
DEFAULT_PENALTY: Final = 0.1
"""Where nothing of tuning is there to choose by."""


def fit_cox(train: Rows, *, tuning: Rows | None = None) -> Callable[[NDArray[Any]], Array]:
    """Return what gives log relative hazards float64[N] of features; 0 for all without an event.

    Features are prepared as those of the logistic regression are. The penalty is that under which
    the partial likelihood of tuning is highest.
    """
    x, time, event = train
    prepare = preparation(x, tabular=True).standardise
    z = prepare(x)
    weights = np.zeros(z.shape[1])
    if np.asarray(event).any():
        chosen = tuning is not None and bool(np.asarray(tuning[2]).any())
        tried: list[tuple[float, Array]] = []
        with few_threads(z):
            for penalty in PENALTIES if chosen else (DEFAULT_PENALTY,):
                weights = _fitted(z, time, event, penalty, weights)
                loss = 0.0
                if chosen and tuning is not None:
                    loss, _ = partial_likelihood(prepare(tuning[0]) @ weights, *tuning[1:])
                tried.append((loss, weights))
        weights = min(tried, key=lambda one: one[0])[1]
    return lambda rows: prepare(rows) @ weights


def partial_likelihood(risk: Array, time: NDArray[Any], event: NDArray[Any]) -> tuple[float, Array]:
    """Return (mean over events of -log partial likelihood, its gradient [N]) of log hazards [N]."""
    order = np.argsort(-np.asarray(time, np.float64), kind="stable")
    score, came = risk[order] - risk.max(), np.asarray(event, bool)[order]
    # At risk are all from the first to the last row of an event's own time.
    last = np.searchsorted(-np.asarray(time, np.float64)[order], -np.asarray(time)[order], "right")
    last -= 1
    at_risk = np.logaddexp.accumulate(score)[last]
    number = came.sum()
    met = np.bincount(last[came], np.exp(-at_risk[came]), len(score))[::-1].cumsum()[::-1]
    gradient = np.empty(len(score))
    gradient[order] = (np.exp(score) * met - came) / number
    return float((at_risk - score)[came].sum() / number), gradient


def _fitted(
    z: Array, time: NDArray[Any], event: NDArray[Any], penalty: float, start: Array
) -> Array:
    def objective(weights: Array) -> tuple[Any, Array]:
        loss, slope = partial_likelihood(z @ weights, time, event)
        return loss + penalty / 2 * weights @ weights, z.T @ slope + penalty * weights

    found: Array = minimize(objective, start, jac=True, method="L-BFGS-B").x
    return found
