"""Is a reconstructed curve better than a simple one? Reference rows for hourly grids.

N patients, H hours, V vitals. Every row sees the same cells and is scored on the same cells:
`seen`, the observed cells it was given, and `hidden`, observed cells it was not given.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from ehr_ray.evaluation.metrics.bootstrap import numbered
from ehr_ray.evaluation.suite import SplitPredictions
from ehr_ray.events.grid import imputed
from ehr_ray.families.vitals_vae.evaluation import fpca
from ehr_ray.families.vitals_vae.evaluation.fpca import Functional

Curves = NDArray[np.float32]
Mask = NDArray[np.bool_]
MODEL: Final = "model"
SHRUNK: Final = "shrunk"
COMPONENTS: Final = 32
FOR_EVER: Final = np.array(10**6)
"""Hours a value is carried by the row that repeats the last one."""
TITLES: Final = {
    MODEL: "this model",
    SHRUNK: "this model, shrunk towards the patient mean",
    "cohort_mean": "cohort mean",
    "hourly_mean": "cohort mean of the hour",
    "patient_mean": "patient mean",
    "forward_fill": "last value carried forward",
    "pca": f"PCA, {COMPONENTS} components",
    "fpca": f"FPCA, {fpca.COMPONENTS} components a vital sign",
}
"""The model and what it is measured beside; forward fill repeats the cells it is given."""
Weights = Mapping[str, NDArray[np.float64]]
"""By kind of cells, how far each vital sign goes from the patient mean to the model, [V]."""


@dataclass(frozen=True, eq=False)
class Grids:
    """Hourly grids as z-scores, [N, H, V], and what the model makes of them."""

    sample: NDArray[np.int64]
    """Row of the split's samples, [N]."""
    value: Curves
    observed: Mask
    hidden: Mask
    """The observed cells that `imputed` was made without."""
    estimate: Curves
    """Reconstruction from all observed cells."""
    imputed: Curves
    """Reconstruction from the cells not hidden."""

    @classmethod
    def of(cls, part: SplitPredictions, num_vitals: int) -> "Grids":
        """Read the `grids` table of a split."""
        table = part.tables["grids"]

        def cube(name: str) -> Curves:
            flat = table[name].combine_chunks().values.to_numpy()
            return flat.reshape(len(table), -1, num_vitals)

        return cls(
            sample=table["sample"].to_numpy(),
            value=cube("value"),
            observed=cube("observed") > 0.5,
            hidden=cube("hidden") > 0.5,
            estimate=cube("estimate"),
            imputed=cube("imputed"),
        )

    def __len__(self) -> int:
        """Return the number of patients."""
        return len(self.value)

    def take(self, rows: NDArray[Any]) -> "Grids":
        """Return some of the patients."""
        return replace(self, **{name: array[rows] for name, array in vars(self).items()})


@dataclass(frozen=True, eq=False)
class References:
    """Simple reconstructions fitted on train: name to a function of (value, mask) [N, H, V]."""

    rows: Mapping[str, Callable[[Curves, Mask], Curves]]
    fill: Callable[[Curves, Mask], Curves]
    """Imputed curves: what PCA and FPCA read."""
    functional: Functional
    """FPCA of imputed train curves."""

    def scores(self, value: Curves, mask: Mask) -> NDArray[np.float64]:
        """Return FPCA scores of patients, [N, V * components]."""
        return self.functional.scores(self.fill(value, mask))

    @property
    def explained(self) -> NDArray[np.float64]:
        """Share of the variance of imputed train curves that FPCA explains, [V]."""
        return self.functional.explained.sum(1)


def fit_references(train: Grids, carry_hours: NDArray[Any], seed: int = 0) -> References:
    """Fit every reference on the observed cells of train patients."""
    value, observed = train.value, train.observed
    count = observed.sum((0, 1))
    mean = (value * observed).sum((0, 1)) / np.maximum(count, 1)
    at_hour = observed.sum(0)
    # An hour with few values leans on the cohort's mean: ten values weigh as much as it does.
    hourly = ((value * observed).sum(0) + 10 * mean) / (at_hour + 10)

    def fill(x: Curves, mask: Mask) -> Curves:
        return imputed(x * mask, mask, carry_hours, mean)[0]

    curves = fill(value, observed)
    functional = fpca.fit(curves)
    linear = _linear(curves, seed)
    rows: dict[str, Callable[[Curves, Mask], Curves]] = {
        "cohort_mean": lambda x, _: np.broadcast_to(mean, x.shape),
        "hourly_mean": lambda x, _: np.broadcast_to(hourly, x.shape),
        "patient_mean": lambda x, mask: _patient_mean(x, mask, mean),
        "forward_fill": lambda x, mask: imputed(x * mask, mask, FOR_EVER, mean)[0],
        "pca": lambda x, mask: linear(fill(x, mask)),
        "fpca": lambda x, mask: functional.project(fill(x, mask)),
    }
    return References(rows, fill, functional)


def _patient_mean(value: Curves, mask: Mask, mean: NDArray[Any]) -> Curves:
    count = mask.sum(1, keepdims=True)
    own = (value * mask).sum(1, keepdims=True) / np.maximum(count, 1)
    return np.broadcast_to(np.where(count > 0, own, mean), value.shape)


def _linear(curves: Curves, seed: int) -> Callable[[Curves], Curves]:
    """Return the projection on the first principal components of whole patients."""
    flat = curves.reshape(len(curves), -1)
    size = min(COMPONENTS, *(n - 1 for n in flat.shape))
    with threadpool_limits(1):
        model = PCA(max(1, size), svd_solver="randomized", random_state=seed).fit(flat)

    def project(x: Curves) -> Curves:
        back = model.inverse_transform(model.transform(x.reshape(len(x), -1)))
        return back.reshape(x.shape)

    return project


@dataclass(frozen=True, eq=False)
class Errors:
    """Squared errors of one row, summed over each patient's cells: [N, V], and the cells [N, V]."""

    squared: NDArray[np.float64]
    count: NDArray[np.float64]

    def mse(self) -> float:
        """Mean over all cells."""
        return float(self.squared.sum() / max(self.count.sum(), 1))

    def by_vital(self) -> NDArray[np.float64]:
        """Mean of each vital sign's cells, [V]; NaN without cells."""
        count = self.count.sum(0)
        return np.divide(
            self.squared.sum(0), count, out=np.full(len(count), np.nan), where=count > 0
        )


def score(curve: Curves, value: Curves, cells: Mask) -> Errors:
    """Return the errors of a curve on some cells."""
    squared = np.square(np.where(cells, curve - value, 0.0), dtype=np.float64)
    return Errors(squared.sum(1), cells.sum(1).astype(np.float64))


def fit_shrinkage(tuning: Grids, references: References) -> Weights:
    """Return the weights in [0, 1] with the least squared error on tuning patients' cells.

    A model of few patients may know less of a vital sign than the patient's own mean; then it is 0.
    """
    found = {}
    for kind, ours, means, cells in _both(tuning, references):
        away = np.where(cells, ours - means, 0.0)
        wanted = np.where(cells, tuning.value - means, 0.0)
        size = np.square(away, dtype=np.float64).sum((0, 1))
        product = (away * wanted).sum((0, 1), dtype=np.float64)
        found[kind] = np.clip(product / np.where(size > 0, size, 1.0), 0.0, 1.0)
    return found


def _both(grids: Grids, references: References) -> Iterator[tuple[str, Curves, Curves, Mask]]:
    """Yield (kind, the model's curves, the patient's means, the cells they are judged on)."""
    mean, visible = references.rows["patient_mean"], grids.observed & ~grids.hidden
    yield "seen", grids.estimate, mean(grids.value, grids.observed), grids.observed
    yield "hidden", grids.imputed, mean(grids.value, visible), grids.hidden


def measure(
    judged: Grids,
    references: References,
    hours: slice = slice(None),
    shrinkage: Weights | None = None,
) -> dict[str, dict[str, Errors]]:
    """Return errors by row and kind, `seen` and `hidden`, within a range of hours.

    With `shrinkage` the model's curves have a second row, drawn towards the patient mean.
    """
    visible = judged.observed & ~judged.hidden
    curves = {MODEL: (judged.estimate, judged.imputed)}
    if shrinkage is not None:
        whole, partial = (
            (means + shrinkage[kind] * (ours - means)).astype(np.float32)
            for kind, ours, means, _ in _both(judged, references)
        )
        curves[SHRUNK] = (whole, partial)
    for name, row in references.rows.items():
        curves[name] = (row(judged.value, judged.observed), row(judged.value, visible))
    result = {}
    for name, (whole, partial) in curves.items():
        result[name] = {
            kind: score(curve[:, hours], judged.value[:, hours], cells[:, hours])
            for kind, curve, cells in (
                ("seen", whole, judged.observed),
                ("hidden", partial, judged.hidden),
            )
        }
    return result


def difference(
    ours: Errors,
    theirs: Errors,
    subject: NDArray[Any],
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> tuple[float, float, float]:
    """Return mean squared error of one row less that of another, and its 95 % interval.

    Patients are resampled, the same for both rows; `subject` [N] says whose each grid is.
    """
    group = numbered(subject)
    a, b, count = (
        np.bincount(group, of_grid.sum(1)) for of_grid in (ours.squared, theirs.squared, ours.count)
    )
    rng = np.random.default_rng(seed)
    weight = rng.multinomial(len(a), np.full(len(a), 1 / len(a)), num_bootstrap)
    draws = (weight @ (a - b)) / np.maximum(weight @ count, 1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float((a - b).sum() / max(count.sum(), 1)), float(low), float(high)
