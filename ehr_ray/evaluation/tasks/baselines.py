"""Baselines printed beside every model: fit on train, choose on tuning, score anything.

Each is a `Scorer`: a calibrated probability, a threshold and what was chosen for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.thresholds import choose_threshold
from ehr_ray.evaluation.tasks.probe import Probe, fit_platt, fit_probe, logit, sigmoid
from ehr_ray.evaluation.tasks.trees import GRID, SEEDS, TreeSettings, fit_trees
from ehr_ray.events.auroc import auroc

Array = NDArray[np.float64]
Input = Literal["embedding", "untrained", "features", "rich", "logit", "ensemble"]

TITLES: Final = {
    "model": "This model",
    "network": "The network alone",
    "probe": "Linear probe on its own embedding",
    "gbm": "LightGBM on simple features",
    "gbm_rich": "LightGBM on rich features",
    "trees_and_model": "The trees and this model, averaged",
    "logistic": "Logistic regression on simple features",
    "logistic_rich": "Logistic regression on rich features",
    "average_rich": "LightGBM and logistic regression on rich features, averaged",
    "pca": "PCA of simple features + logistic regression",
    "untrained": "Linear probe on the untrained encoder",
    "ridge": "Ridge regression on simple features",
    "ridge_rich": "Ridge regression on rich features",
    "mean": "Mean of train",
    "majority": "Shares of the classes in train",
}
FEATURES: Final = (
    "Simple features: first, last, mean, minimum, maximum, standard deviation, count, time of the "
    "last and mean of the last quarter of each code, static values, age, hours since the origin "
    "and since admission, prior admissions. Rich features: besides, mean by window of time, slope, "
    "last minus first and time since the last, and all of these of variables derived from others, "
    "as PaO2/FiO2."
)
"""What the rows of a table mean by them."""
FITTED_TITLES: Final = {
    "probe": "This model, linear probe",
    "logit": "This model, trained for the task",
    "ensemble": "This ensemble: network, trees, regression",
}
"""Of the model's own row: how its embedding or its own output became a probability."""
SHORT_TITLES: Final = {
    "model": "this model",
    "network": "its network alone",
    "probe": "a linear probe on its own embedding",
    "gbm": "gradient-boosted trees",
    "gbm_rich": "gradient-boosted trees on rich features",
    "trees_and_model": "the trees and this model, averaged",
    "logistic": "logistic regression",
    "logistic_rich": "logistic regression on rich features",
    "average_rich": "trees and logistic regression on rich features, averaged",
    "pca": "PCA",
    "untrained": "the untrained encoder",
    "ridge": "ridge regression",
    "ridge_rich": "ridge regression on rich features",
    "mean": "the mean of train",
    "majority": "the shares of the classes in train",
}
PCA_COMPONENTS: Final = 64


def title_of(name: str, metrics: Mapping[str, float], split: str) -> str:
    """Return the title of a row; the model's own says whether a probe or the model was fitted."""
    if name != "model":
        return TITLES[name]
    if f"baseline/network/{split}/auroc" in metrics:
        return FITTED_TITLES["ensemble"]
    own = f"baseline/probe/{split}/auroc" in metrics
    return FITTED_TITLES["logit" if own else "probe"]


@dataclass(frozen=True)
class Scorer:
    """A fitted model of the comparison, ready for the rows of any cohort."""

    name: str
    input: Input
    """Which array of a split it reads."""
    predict: Callable[[NDArray[Any]], Array]
    """float[N, D] to calibrated probabilities float[N]."""
    predict_raw: Callable[[NDArray[Any]], Array]
    """The same before calibration."""
    threshold: float
    chosen: dict[str, float]
    """What tuning chose, e.g. `c`, `num_trees`."""
    notes: tuple[str, ...] = ()
    members: tuple[Callable[[NDArray[Any]], Array], ...] = ()
    """Single seeds of an ensemble, for the spread of their AUROC."""
    probe: Probe | None = None
    """The same as arrays, of what is linear in its input."""


def fit_linear(
    name: str,
    source: Input,
    train_x: NDArray[Any],
    train_label: NDArray[Any],
    tuning_x: NDArray[Any],
    tuning_label: NDArray[Any],
    *,
    seed: int = 0,
) -> Scorer:
    """Fit the probe (`model`, `untrained`), a logistic or the `pca` row of the comparison.

    On features values are winsorised and missing indicators added; `pca` keeps at most
    64 whitened components of those.
    """
    probe, notes = fit_probe(
        train_x,
        train_label,
        tuning_x,
        tuning_label,
        tabular=source in ("features", "rich"),
        num_components=PCA_COMPONENTS if name == "pca" else None,
        seed=seed,
    )
    return Scorer(
        name=name,
        input=source,
        predict=probe.predict,
        predict_raw=lambda x: probe.predict(x, calibrated=False),
        threshold=probe.threshold,
        chosen={} if np.isnan(probe.c) else {"c": probe.c},
        notes=notes,
        probe=probe,
    )


def fit_own(tuning_logit: NDArray[Any], tuning_label: NDArray[Any]) -> Scorer:
    """Calibrate the output of a model trained for the task, float [N], on tuning (Platt)."""
    y = np.asarray(tuning_label, dtype=np.int64)
    given = np.asarray(tuning_logit, dtype=np.float64)
    slope, offset, note = fit_platt(given, y)
    threshold = choose_threshold(y, sigmoid(slope * given + offset))
    return Scorer(
        name="model",
        input="logit",
        predict=lambda x: sigmoid(slope * np.asarray(x, dtype=np.float64) + offset),
        predict_raw=lambda x: sigmoid(np.asarray(x, dtype=np.float64)),
        threshold=threshold,
        chosen={},
        notes=(note,) if note else (),
        probe=Probe.of_logit(slope, offset, threshold),
    )


def fit_gbm(
    train_x: NDArray[Any],
    train_label: NDArray[Any],
    tuning_x: NDArray[Any],
    tuning_label: NDArray[Any],
    *,
    name: str = "gbm",
    source: Input = "features",
    seed: int = 0,
    num_seeds: int = SEEDS,
    grid: tuple[TreeSettings, ...] = GRID,
) -> Scorer:
    """Gradient-boosted trees, settings chosen within train, probabilities of seeds averaged.

    Tuning gives calibration and threshold alone.
    """
    trees = fit_trees(train_x, train_label, seed=seed, num_seeds=num_seeds, grid=grid)
    tuning_y = np.asarray(tuning_label, dtype=np.int64)

    def predict_raw(x: NDArray[Any]) -> Array:
        return np.mean([member(x) for member in trees.members], axis=0)

    raw = logit(predict_raw(tuning_x))
    slope, offset, platt_note = fit_platt(raw, tuning_y)
    return Scorer(
        name=name,
        input=source,
        predict=lambda x: sigmoid(slope * logit(predict_raw(x)) + offset),
        predict_raw=predict_raw,
        threshold=choose_threshold(tuning_y, sigmoid(slope * raw + offset)),
        chosen=trees.chosen,
        notes=(*trees.notes, platt_note) if platt_note else trees.notes,
        members=trees.members,
    )


def fit_average(
    name: str, parts: tuple[Scorer, ...], tuning_x: NDArray[Any], tuning_label: NDArray[Any]
) -> Scorer:
    """Average the calibrated probabilities of scorers that read the same input."""

    def predict(x: NDArray[Any]) -> Array:
        return np.mean([part.predict(x) for part in parts], axis=0)

    return Scorer(
        name=name,
        input=parts[0].input,
        predict=predict,
        predict_raw=lambda x: np.mean([part.predict_raw(x) for part in parts], axis=0),
        threshold=choose_threshold(np.asarray(tuning_label, dtype=np.int64), predict(tuning_x)),
        chosen={},
    )


def fit_ensemble(
    network: Scorer, beside: Scorer, tuning_x: NDArray[Any], tuning_label: NDArray[Any]
) -> Scorer:
    """Average the logits of a model trained for the task and a baseline, calibrated on tuning.

    Tuning chose the network's epoch and scaled both, and fitted neither. Their weights are equal:
    a hundred positive rows choose none better. The input, float[N, 1 + G], is the model's logit and
    what the baseline reads.
    """
    y = np.asarray(tuning_label, dtype=np.int64)

    def mean_logit(x: NDArray[Any]) -> Array:
        return 0.5 * (logit(network.predict(x[:, 0])) + logit(beside.predict(x[:, 1:])))

    raw = mean_logit(tuning_x)
    slope, offset, note = fit_platt(raw, y)
    return Scorer(
        name="model",
        input="ensemble",
        predict=lambda x: sigmoid(slope * mean_logit(x) + offset),
        predict_raw=lambda x: sigmoid(mean_logit(x)),
        threshold=choose_threshold(y, sigmoid(slope * raw + offset)),
        chosen={},
        notes=(note,) if note else (),
    )


def fit_stacked(
    parts: Sequence[Scorer], weights: NDArray[Any], tuning_x: NDArray[Any], tuning_y: NDArray[Any]
) -> Scorer:
    """Weigh the logits of a model trained for the task, the first part, and of baselines.

    Weights [K + 1], the last an offset, are those of `stacking.fit_weights`, which calibrate, and
    tuning gives the threshold alone. The input is that of `fit_ensemble`.
    """
    network, *beside = parts

    def predict(x: NDArray[Any]) -> Array:
        given = [network.predict(x[:, 0]), *(part.predict(x[:, 1:]) for part in beside)]
        return sigmoid(np.column_stack([logit(one) for one in given]) @ weights[:-1] + weights[-1])

    return Scorer(
        name="model",
        input="ensemble",
        predict=predict,
        predict_raw=predict,
        threshold=choose_threshold(np.asarray(tuning_y, dtype=np.int64), predict(tuning_x)),
        chosen={},
    )


def seed_spread(seeds: Array, label: NDArray[Any]) -> dict[str, float]:
    """AUROC of the single seeds of an ensemble: `seed_mean`, `seed_min`, `seed_max`.

    `seeds` is what each says of each row, float[S, N].
    """
    if len(seeds) < 2 or np.unique(label).size < 2:
        return {}
    scores = [auroc(label, one) for one in seeds]
    return {
        "seed_mean": float(np.mean(scores)),
        "seed_min": float(np.min(scores)),
        "seed_max": float(np.max(scores)),
    }
