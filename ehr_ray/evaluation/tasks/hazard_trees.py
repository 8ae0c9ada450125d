"""Survival baseline: boosted trees with a piecewise-constant hazard.

The likelihood of a hazard that is constant within bins is that of a Poisson count for each row and
bin, with the time at risk as exposure (Friedman 1982): LightGBM fits it as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.survival import time_in_bins
from ehr_ray.evaluation.tasks.probe import num_threads

Array = NDArray[np.float64]
Rows = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
"""Features float[N, F] with NaN for missing, time followed [N], whether the event ended it [N]."""

MAX_TREES: Final = 300
PATIENCE: Final = 20
"""Trees without a better likelihood of tuning after which boosting stops."""
DEFAULT_TREES: Final = 100
"""Where nothing of tuning is there to stop by."""


def fit_hazard_trees(
    train: Rows, edges: Sequence[float], *, tuning: Rows | None = None, seed: int = 0
) -> Callable[[NDArray[Any]], Array]:
    """Return what gives hazards float64[N, K] of features, per unit of the times and `edges`.

    Without an event everybody's hazard is half an event in the time of all.
    """
    x, y, exposure = _by_bin(train, edges)
    rate = _rates(x, y, exposure, len(edges) + 1)
    bins = len(rate)
    if not y.any():
        return lambda rows: np.tile(rate, (len(rows), 1))
    data = _dataset(x, y, exposure * rate[x[:, -1].astype(int)])
    stop: list[Callable[..., Any]] = []
    held, trees = [], DEFAULT_TREES
    if tuning is not None and np.asarray(tuning[2]).any():
        xt, yt, et = _by_bin(tuning, edges)
        held, trees = [_dataset(xt, yt, et * rate[xt[:, -1].astype(int)], data)], MAX_TREES
        stop = [lightgbm.early_stopping(PATIENCE, verbose=False)]
    booster = lightgbm.train(_parameters(x, seed), data, trees, valid_sets=held, callbacks=stop)

    def hazard(rows: NDArray[Any]) -> Array:
        given = _with_bin(np.repeat(rows, bins, 0), np.tile(np.arange(bins), len(rows)))
        score = booster.predict(given, raw_score=True, num_threads=num_threads(given.size))
        return rate * np.exp(np.asarray(score, np.float64)).reshape(-1, bins)

    return hazard


def _rates(x: NDArray[np.float32], y: Array, exposure: Array, bins: int) -> Array:
    """Return the rate of each bin, from which trees start; without time the rate of all."""
    place = x[:, -1].astype(int)
    whole = max(y.sum(), 0.5) / max(exposure.sum(), 1e-12)
    came, spent = (np.bincount(place, part, bins) for part in (y, exposure))
    unit = 1 / whole  # the time in which one event is expected
    return (came + 1) / (spent + unit) if y.any() else np.full(bins, whole)


def _by_bin(rows: Rows, edges: Sequence[float]) -> tuple[NDArray[np.float32], Array, Array]:
    """Return a row for each bin that a row reached: features and bin, events, time at risk."""
    x, time, event = rows
    spent = time_in_bins(time, edges)
    row, place = np.nonzero(spent > 0)
    last = np.searchsorted(edges, time)  # a bin holds its end
    came = (place == last[row]) & np.asarray(event, bool)[row]
    return _with_bin(np.asarray(x)[row], place), came.astype(np.float64), spent[row, place]


def _with_bin(x: NDArray[Any], place: NDArray[np.integer]) -> NDArray[np.float32]:
    return np.column_stack([x, place]).astype(np.float32)


def _dataset(
    x: NDArray[np.float32], y: Array, expected: Array, reference: lightgbm.Dataset | None = None
) -> lightgbm.Dataset:
    parameters = {"max_bin": 63, "num_threads": num_threads(x.size), "verbosity": -1}
    offset = np.log(expected)
    return lightgbm.Dataset(x, y, init_score=offset, reference=reference, params=parameters)


def _parameters(x: NDArray[np.float32], seed: int) -> dict[str, Any]:
    return {
        "objective": "poisson",
        "learning_rate": 0.1,
        "num_leaves": 8,
        "feature_fraction": 0.5,
        "min_data_in_leaf": min(50, max(3, len(x) // 40)),
        "lambda_l2": 10.0,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "num_threads": num_threads(x.size),
        "verbosity": -1,
    }
