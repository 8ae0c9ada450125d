"""Linear models of numbers and of classes: ridge and multinomial logistic regression.

Inputs are prepared as those of a probe are (`probe.fit_probe`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from ehr_ray.evaluation.metrics import classes as class_metrics
from ehr_ray.evaluation.tasks.probe import C_GRID, Preparation, few_threads, preparation

Array = NDArray[np.float64]

ALPHA_GRID: Final = tuple(float(a) for a in np.logspace(5, -1, 13))
"""L2 strength on standardised inputs, weakest model first."""
_PATIENCE: Final = 4
"""Strengths without a lower loss on tuning after which the path ends."""


@dataclass(frozen=True)
class LinearModel(Preparation):
    """A linear model of a number, or of K classes, of D inputs."""

    coef: Array
    """float[D + I], of classes float[D + I, K]: weights of the standardised inputs."""
    intercept: float | Array
    """One, of classes float[K]: -inf of a class that train lacks."""

    def predict(self, x: NDArray[Any]) -> Array:
        """Return the number of each row of `x` [N, D], [N], or its probabilities, [N, K]."""
        return self.of_standardised(self.standardise(x))

    def of_standardised(self, z: Array) -> Array:
        """Return the same of rows that are standardised already, [N, D + I]."""
        said: Array = z @ self.coef + self.intercept
        if said.ndim == 1:
            return said
        raised = np.exp(said - said.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class Linear:
    """A fitted model."""

    model: LinearModel
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
    start = preparation(train_x, tabular=tabular)
    z, tuning_z = start.standardise(train_x), start.standardise(tuning_x)

    def fitted() -> Iterator[tuple[Any, float, float]]:
        for alpha in ALPHA_GRID:
            model = Ridge(alpha).fit(z, train_label)
            yield model, alpha, float(np.square(model.predict(tuning_z) - tuning_label).mean())

    with few_threads(z):
        model, alpha = _least(fitted())
    coef, intercept = np.asarray(model.coef_, np.float64), float(model.intercept_)
    return Linear(LinearModel(**vars(start), coef=coef, intercept=intercept), {"alpha": alpha})


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
    start = preparation(train_x, tabular=tabular)
    z, tuning_z = start.standardise(train_x), start.standardise(tuning_x)

    def spread(rows: Array, intercepts: Any) -> LinearModel:
        coef, intercept = np.zeros((z.shape[1], num_classes)), np.full(num_classes, -np.inf)
        weighed = there[-len(rows) :]  # of two classes the second has weights, the first none
        coef[:, weighed] = rows.T
        intercept[there], intercept[weighed] = 0.0, intercepts
        return LinearModel(**vars(start), coef=coef, intercept=intercept)

    if there.size < 2:
        note = "train has one class only: everybody gets it"
        return Linear(spread(np.zeros((1, z.shape[1])), [0.0]), {}, (note,))

    def fitted() -> Iterator[tuple[Any, float, float]]:
        rows = np.ones((1, len(tuning_label)))
        for c in C_GRID:
            model = LogisticRegression(C=c, max_iter=1000).fit(z, train_label)
            said = spread(model.coef_, model.intercept_).of_standardised(tuning_z)
            found = class_metrics.statistics(tuning_label, said)
            yield model, c, float(found["log_loss"](rows)[0])

    with few_threads(z):
        model, c = _least(fitted())
    return Linear(spread(model.coef_, model.intercept_), {"c": c})


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
