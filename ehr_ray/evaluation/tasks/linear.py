"""Linear models of numbers and of classes: ridge and multinomial logistic regression.

Inputs are prepared as those of a probe are (`probe.fit_probe`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from ehr_ray.evaluation.metrics import classes as class_metrics
from ehr_ray.evaluation.tasks.probe import C_GRID, few_threads, standardiser

Array = NDArray[np.float64]
Predict = Callable[[NDArray[Any]], Array]

ALPHA_GRID: Final = tuple(float(a) for a in np.logspace(5, -1, 13))
"""L2 strength on standardised inputs, weakest model first."""
_PATIENCE: Final = 4
"""Strengths without a lower loss on tuning after which the path ends."""


@dataclass(frozen=True)
class Linear:
    """A fitted model."""

    predict: Predict
    """float[N, D] to numbers float[N], or to probabilities float[N, K]."""
    chosen: dict[str, float]
    """What tuning chose."""
    notes: tuple[str, ...] = ()


def fit_ridge(
    train_x: NDArray[Any],
    train_label: NDArray[Any],
    tuning_x: NDArray[Any],
    tuning_label: NDArray[Any],
    *,
    tabular: bool = False,
) -> Linear:
    """Fit ridge regression on train, its strength chosen by the squared error on tuning.

    `tabular` inputs are features, others an embedding.
    """
    prepare = standardiser(train_x, tabular=tabular)
    z, tuning_z = prepare(train_x), prepare(tuning_x)

    def fitted() -> Iterator[tuple[Any, float, float]]:
        for alpha in ALPHA_GRID:
            model = Ridge(alpha).fit(z, train_label)
            yield model, alpha, float(np.square(model.predict(tuning_z) - tuning_label).mean())

    with few_threads(z):
        model, alpha = _least(fitted())
    return Linear(lambda x: np.asarray(model.predict(prepare(x)), np.float64), {"alpha": alpha})


def fit_multinomial(
    train_x: NDArray[Any],
    train_label: NDArray[np.int64],
    tuning_x: NDArray[Any],
    tuning_label: NDArray[np.int64],
    num_classes: int,
    *,
    tabular: bool = False,
) -> Linear:
    """Fit multinomial logistic regression on train, C chosen by the log loss on tuning.

    A class without rows in train gets probability 0; train of one class gives all of it to that.
    """
    there = np.unique(train_label)
    if there.size < 2:
        alone = np.eye(num_classes)[there]
        note = "train has one class only: everybody gets it"
        return Linear(lambda x: np.repeat(alone, len(x), axis=0), {}, (note,))
    prepare = standardiser(train_x, tabular=tabular)
    z, tuning_z = prepare(train_x), prepare(tuning_x)

    def spread(model: Any, rows: Array) -> Array:
        probability = np.zeros((len(rows), num_classes))
        probability[:, there] = model.predict_proba(rows)
        return probability

    def fitted() -> Iterator[tuple[Any, float, float]]:
        rows = np.ones((1, len(tuning_label)))
        for c in C_GRID:
            model = LogisticRegression(C=c, max_iter=1000).fit(z, train_label)
            found = class_metrics.statistics(tuning_label, spread(model, tuning_z))
            yield model, c, float(found["log_loss"](rows)[0])

    with few_threads(z):
        model, c = _least(fitted())
    return Linear(lambda x: spread(model, prepare(x)), {"c": c})


def _least(fitted: Iterator[tuple[Any, float, float]]) -> tuple[Any, float]:
    """Return the model of least loss and its strength; weaker penalties take longest."""
    best: tuple[Any, float, float] | None = None
    worse = 0
    for one in fitted:
        if best is None or one[2] < best[2]:
            best, worse = one, 0
        else:
            worse += 1
        if worse == _PATIENCE:
            break
    assert best is not None
    return best[0], best[1]
