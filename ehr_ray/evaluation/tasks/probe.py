"""Linear models on frozen inputs: logistic regression, calibrated, as one record of arrays.

The same record holds the probe of an embedding, logistic regression on features (logarithms of
skewed ones, imputed, winsorised, with missing indicators) and PCA followed by logistic regression:
all three are linear in the standardised input.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from threadpoolctl import threadpool_limits

from ehr_ray.evaluation.metrics.thresholds import choose_threshold
from ehr_ray.events.auroc import auroc

Array = NDArray[np.float64]

C_GRID: Final = tuple(float(c) for c in np.logspace(-5, 1, 13))
"""Inverse L2 strength on standardised inputs, weakest model first."""
DEFAULT_C: Final = 1e-2
_WINSORISE: Final = 0.02
_FOLDS: Final = 5
_PATIENCE: Final = 4
"""Values of C without a better AUROC after which the path ends."""
_THREADED_SIZE: Final = 20_000_000


@dataclass(frozen=True)
class Preparation:
    """How rows of D inputs are prepared and standardised; arrays only, to be stored anywhere."""

    logged: NDArray[np.int64]
    """int[L]: inputs that become log(1 + x) first; all bounds below are of what becomes of them."""
    fill: Array
    """float[D]: replaces a missing value (train median)."""
    low: Array
    """float[D]: values below are raised to it."""
    high: Array
    """float[D]: values above are lowered to it."""
    indicator: NDArray[np.int64]
    """int[I]: inputs whose missingness is an input of its own."""
    center: Array
    """float[D + I]: train mean."""
    scale: Array
    """float[D + I]: train standard deviation, 1 for a constant column."""

    def standardise(self, x: NDArray[Any]) -> Array:
        """Return rows float[N, D] as float[N, D + I]."""
        given = np.asarray(x, dtype=np.float64)
        if given.ndim != 2 or given.shape[1] != self.fill.size:
            raise ValueError(f"input of shape {given.shape}; the probe takes [N, {self.fill.size}]")
        given = _log(given, self.logged)
        absent = np.isnan(given)
        filled = np.clip(np.where(absent, self.fill, given), self.low, self.high)
        return (np.hstack([filled, absent[:, self.indicator]]) - self.center) / self.scale

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Every field as a numpy array, for safetensors."""
        return {name: np.asarray(value) for name, value in vars(self).items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild what `to_arrays` gave; 0-dimensional arrays become floats."""
        fields = {n: np.asarray(arrays[n]) for n in cls.__dataclass_fields__}
        return cls(**{n: a if a.ndim else float(a) for n, a in fields.items()})  # type: ignore


@dataclass(frozen=True)
class Probe(Preparation):
    """A calibrated linear classifier of D inputs."""

    coef: Array
    """float[D + I]: weights of the standardised inputs."""
    intercept: float
    platt_slope: float
    """Calibrated logit = `platt_slope` * logit + `platt_offset`; 1 and 0 when not calibrated."""
    platt_offset: float
    threshold: float
    """Operating point chosen on tuning, of calibrated probabilities."""
    c: float
    """Inverse L2 strength chosen on tuning; NaN when nothing was fitted."""

    def predict(self, x: NDArray[Any], *, calibrated: bool = True) -> Array:
        """Probability of each row of `x` [N, D], after Platt scaling unless told otherwise."""
        logit = self.standardise(x) @ self.coef + self.intercept
        if calibrated:
            logit = self.platt_slope * logit + self.platt_offset
        return sigmoid(logit)

    @classmethod
    def of_logit(cls, slope: float = 1.0, offset: float = 0.0, threshold: float = 0.5) -> "Probe":
        """Return the probe of one input that is a logit itself, and is calibrated only."""
        return cls(
            logged=np.zeros(0, np.int64),
            fill=np.zeros(1),
            low=np.full(1, -np.inf),
            high=np.full(1, np.inf),
            indicator=np.zeros(0, np.int64),
            center=np.zeros(1),
            scale=np.ones(1),
            coef=np.ones(1),
            intercept=0.0,
            platt_slope=slope,
            platt_offset=offset,
            threshold=threshold,
            c=np.nan,
        )


def fit_probe(
    train_x: NDArray[Any],
    train_label: NDArray[Any],
    tuning_x: NDArray[Any],
    tuning_label: NDArray[Any],
    *,
    tabular: bool = False,
    num_components: int | None = None,
    c_grid: Sequence[float] = C_GRID,
    seed: int = 0,
) -> tuple[Probe, tuple[str, ...]]:
    """Fit on train, choose C, calibrate and set the threshold on tuning; return it with notes.

    C maximises tuning AUROC. Where tuning has one class only, C comes from cross-validation on
    train, and there is no calibration; where train has one class only, the result predicts the
    train prevalence for everybody. Each such case is said in a note.

    Args:
        train_x: float[N, D]; NaN is missing and becomes the train median.
        train_label: 0 or 1, [N].
        tuning_x: float[M, D].
        tuning_label: 0 or 1, [M].
        tabular: take logarithms of skewed inputs, winsorise at the 2nd and 98th train percentile
            and add missing indicators.
        num_components: reduce to at most this many whitened principal components first.
        c_grid: candidates for C, ascending.
        seed: shuffles the cross-validation folds.
    """
    y, tuning_y = np.asarray(train_label, dtype=np.int64), np.asarray(tuning_label, dtype=np.int64)
    start = _unfitted(train_x, tabular=tabular)
    if np.unique(y).size < 2:
        return _constant(start, y, tuning_x, tuning_y)
    z, tuning_z = start.standardise(train_x), start.standardise(tuning_x)
    with few_threads(z):
        basis = None if num_components is None else _principal_components(z, num_components)
        if basis is not None:
            z, tuning_z = z @ basis, tuning_z @ basis
        coef, intercept, c, notes = _fit(z, y, tuning_z, tuning_y, c_grid, seed)
    coef = coef if basis is None else basis @ coef
    fitted = replace(start, coef=coef, intercept=intercept, c=c)
    return _calibrated(fitted, tuning_x, tuning_y, notes)


def fit_platt(logit: NDArray[Any], label: NDArray[Any]) -> tuple[float, float, str | None]:
    """Slope and offset that calibrate `logit` (Platt 1999, smoothed targets), and a note if none.

    Ranking is never changed: one class only, or a slope that is not positive, gives (1, 0).
    """
    s, y = np.asarray(logit, dtype=np.float64), np.asarray(label, dtype=np.int64)
    if np.unique(y).size < 2:
        return 1.0, 0.0, "not calibrated: tuning has one class only"
    positive = int(y.sum())
    # Smoothed targets keep the slope finite when tuning is separated perfectly.
    target = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (y.size - positive + 2))
    scale = float(s.std()) or 1.0
    model = LogisticRegression(C=1e6, max_iter=1000).fit(
        np.concatenate([s, s])[:, None] / scale,
        np.repeat([1, 0], y.size),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope = float(model.coef_[0, 0]) / scale
    if slope <= 0:
        return 1.0, 0.0, "not calibrated: higher scores do not mean higher risk on tuning"
    return slope, float(model.intercept_[0]), None


def principal_components(x: NDArray[Any], number: int) -> Callable[[NDArray[Any]], Array]:
    """Return what gives the whitened principal components of features x [N, D], at most `number`.

    Features are prepared as those of a logistic regression are (`fit_probe`, `tabular`).
    """
    start = preparation(x, tabular=True)
    z = start.standardise(x)
    with few_threads(z):
        basis = _principal_components(z, number)
    return lambda rows: start.standardise(rows) @ basis


def few_threads(x: NDArray[Any]) -> AbstractContextManager[Any]:
    """Keep numerical libraries to one thread while `x` is small.

    Their threads spin while they wait for each other: beside a busy neighbour 7 times the
    processor time for logistic regression on 6,400 x 400, and up to 60 times for trees.
    """
    return threadpool_limits(num_threads(x.size) or None)


def num_threads(size: int) -> int:
    """Threads of a library for `size` numbers: 1 while they are few, 0 (its own choice) above."""
    return 1 if size < _THREADED_SIZE else 0


def sigmoid(logit: NDArray[Any]) -> Array:
    """1 / (1 + exp(-logit)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.asarray(logit, dtype=np.float64)))


def logit(probability: NDArray[Any]) -> Array:
    """Inverse of `sigmoid`, probabilities clipped to [1e-6, 1 - 1e-6]."""
    p = np.clip(np.asarray(probability, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def preparation(x: NDArray[Any], *, tabular: bool) -> Preparation:
    """Return what prepares rows as those of x [N, D]; see `fit_probe`."""
    x = np.asarray(x, dtype=np.float64)
    absent = np.isnan(x)
    logged = _skewed(x, absent) if tabular else np.zeros(0, dtype=np.int64)
    x = _log(x, logged)
    # A column that train never saw is filled with 0, which standardises to 0.
    safe = np.where(absent.all(axis=0), 0.0, x)
    fill = np.nanmedian(safe, axis=0)
    low, high = np.full(x.shape[1], -np.inf), np.full(x.shape[1], np.inf)
    indicator = np.zeros(0, dtype=np.int64)
    if tabular:
        low, high = np.nanquantile(safe, (_WINSORISE, 1 - _WINSORISE), axis=0)
        rare = low == high  # clipping would erase a rare but real value
        low, high = np.where(rare, -np.inf, low), np.where(rare, np.inf, high)
        indicator = _distinct_missingness(absent)
    filled = np.clip(np.where(absent, fill, x), low, high)
    columns = np.hstack([filled, absent[:, indicator]])
    scale = columns.std(axis=0)
    constant = scale <= 1e-12 * np.maximum(1.0, np.abs(columns).max(axis=0, initial=0.0))
    return Preparation(
        logged=logged,
        fill=fill,
        low=low,
        high=high,
        indicator=indicator,
        center=columns.mean(axis=0),
        scale=np.where(constant, 1.0, scale),
    )


def _unfitted(x: NDArray[Any], *, tabular: bool) -> Probe:
    start = preparation(x, tabular=tabular)
    return Probe(
        **vars(start),
        coef=np.zeros(start.center.size),
        intercept=0.0,
        platt_slope=1.0,
        platt_offset=0.0,
        threshold=0.5,
        c=np.nan,
    )


def _log(x: Array, columns: NDArray[np.int64]) -> Array:
    """Return `x` with log(1 + value) in some columns; values below 0 count as 0 there."""
    if not columns.size:
        return x
    x = x.copy()
    x[:, columns] = np.log1p(np.maximum(x[:, columns], 0.0))
    return x


def _skewed(x: Array, absent: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Columns without a negative value whose skewness is above 1, as of amounts and counts."""
    number = np.maximum((~absent).sum(axis=0), 1)
    centred = np.where(absent, 0.0, x - np.where(absent, 0.0, x).sum(axis=0) / number)
    spread = np.sqrt(np.square(centred).sum(axis=0) / number)
    cube = np.power(centred, 3).sum(axis=0) / number
    negative = np.where(absent, 0.0, x).min(axis=0, initial=0.0) < 0
    return np.flatnonzero(~negative & (cube > spread**3) & (spread > 0))


def _distinct_missingness(absent: NDArray[np.bool_]) -> NDArray[np.int64]:
    """One column of each pattern of missingness: the statistics of a code share theirs."""
    _, first = np.unique(absent, axis=1, return_index=True)
    share = absent[:, first].mean(axis=0)
    return np.sort(first[(share > 0) & (share < 1)]).astype(np.int64)


def _constant(
    start: Probe, y: NDArray[np.int64], tuning_x: NDArray[Any], tuning_y: NDArray[np.int64]
) -> tuple[Probe, tuple[str, ...]]:
    prevalence = float(logit(np.array([y.mean() if y.size else 0.5]))[0])
    note = "train has one class only: everybody gets the train prevalence"
    return _calibrated(replace(start, intercept=prevalence), tuning_x, tuning_y, (note,))


def _calibrated(
    fitted: Probe, tuning_x: NDArray[Any], tuning_y: NDArray[np.int64], notes: tuple[str, ...]
) -> tuple[Probe, tuple[str, ...]]:
    raw = logit(fitted.predict(tuning_x, calibrated=False))
    slope, offset, note = fit_platt(raw, tuning_y)
    fitted = replace(fitted, platt_slope=slope, platt_offset=offset)
    threshold = choose_threshold(tuning_y, fitted.predict(tuning_x))
    return replace(fitted, threshold=threshold), (*notes, note) if note else notes


def _principal_components(z: Array, num_components: int) -> Array:
    """Whitened principal axes float[K, k] of centred `z`, fewer where its rank is lower."""
    values, vectors = np.linalg.eigh(z.T @ z / z.shape[0])
    values, vectors = values[::-1], vectors[:, ::-1]
    rank = int((values > 1e-10 * max(values[0], 1e-300)).sum())
    kept = max(1, min(num_components, rank, z.shape[0] - 1))
    return vectors[:, :kept] / np.sqrt(np.maximum(values[:kept], 1e-300))


def _fit(
    z: Array,
    y: NDArray[np.int64],
    tuning_z: Array,
    tuning_y: NDArray[np.int64],
    c_grid: Sequence[float],
    seed: int,
) -> tuple[Array, float, float, tuple[str, ...]]:
    path: list[tuple[Array, float]] = []
    if np.unique(tuning_y).size == 2:

        def on_tuning() -> Iterator[float]:
            for coef, b in _regularisation_path(z, y, c_grid):
                path.append((coef, b))
                yield auroc(tuning_y, tuning_z @ coef + b)

        best = _best(on_tuning())
        return *path[best], float(c_grid[best]), ()
    folds = min(_FOLDS, int(np.bincount(y).min()))
    if folds < 2:
        best = int(np.argmin(np.abs(np.log(np.asarray(c_grid) / DEFAULT_C))))
        note = "C not chosen: tuning has one class only and train a single row of one class"
    else:
        parts = [*StratifiedKFold(folds, shuffle=True, random_state=seed).split(z, y)]
        paths = zip(
            *(_regularisation_path(z[fit], y[fit], c_grid) for fit, _ in parts), strict=True
        )
        best = _best(
            sum(
                auroc(y[rest], z[rest] @ coef + b)
                for (_, rest), (coef, b) in zip(parts, step, strict=True)
            )
            for step in paths
        )
        note = f"C chosen by {folds}-fold cross-validation on train: tuning has one class only"
    path = list(_regularisation_path(z, y, c_grid[: best + 1]))
    return *path[best], float(c_grid[best]), (note,)


def _best(scores: Iterable[float]) -> int:
    """Return the place of the highest score, read until `_PATIENCE` bring none higher.

    Weaker penalties overfit, and take longest.
    """
    seen: list[float] = []
    for score in scores:
        seen.append(score)
        if len(seen) - int(np.argmax(seen)) > _PATIENCE:
            break
    return int(np.argmax(seen))


def _regularisation_path(
    z: Array, y: NDArray[np.int64], c_grid: Sequence[float]
) -> Iterator[tuple[Array, float]]:
    """Yield coefficients and intercept for each C; each fit starts from the one before."""
    model = LogisticRegression(solver="lbfgs", max_iter=500, warm_start=True)
    for c in c_grid:
        with warnings.catch_warnings():
            # An unconverged fit at a weak penalty is a worse candidate, and tuning sees that.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.set_params(C=c).fit(z, y)
        yield model.coef_[0].copy(), float(model.intercept_[0])
