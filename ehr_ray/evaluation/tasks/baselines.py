"""Baselines printed beside every model: fit on train, choose on tuning, score anything.

Each is a `Scorer`: a calibrated probability, a threshold and what was chosen for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from ehr_ray.evaluation.metrics.thresholds import choose_threshold
from ehr_ray.evaluation.tasks.probe import Probe, few_threads, fit_platt, fit_probe, logit, sigmoid

Array = NDArray[np.float64]
Input = Literal["embedding", "untrained", "features", "logit"]

TITLES: Final = {
    "model": "This model",
    "probe": "Linear probe on its fine-tuned embedding",
    "gbm": "Gradient-boosted trees on simple features",
    "trees_and_model": "The trees and this model, averaged",
    "logistic": "Logistic regression on simple features",
    "pca": "PCA of simple features + logistic regression",
    "untrained": "Linear probe on the untrained encoder",
}
FITTED_TITLES: Final = {"probe": "This model, linear probe", "logit": "This model, fine-tuned"}
"""Of the model's own row: how its embedding or its own output became a probability."""
SHORT_TITLES: Final = {
    "model": "this model",
    "probe": "a linear probe on its own embedding",
    "gbm": "gradient-boosted trees",
    "trees_and_model": "the trees and this model, averaged",
    "logistic": "logistic regression",
    "pca": "PCA",
    "untrained": "the untrained encoder",
}
PCA_COMPONENTS: Final = 64
GBM_SEEDS: Final = 5
GBM_STEP: Final = 25
"""The number of trees is chosen in steps of this many: finer ones fit the noise of tuning."""


def title_of(name: str, metrics: Mapping[str, float], split: str) -> str:
    """Return the title of a row; the model's own says whether a probe or the model was fitted."""
    if name != "model":
        return TITLES[name]
    own = f"baseline/probe/{split}/auroc" in metrics
    return FITTED_TITLES["logit" if own else "probe"]


@dataclass(frozen=True)
class TreeSettings:
    """One candidate of the grid of gradient-boosted trees."""

    learning_rate: float
    num_trees: int
    max_leaf_nodes: int
    min_samples_leaf: int
    l2: float
    column_share: float
    """Share of the columns offered to each split; what makes seeds differ."""


GBM_GRID: Final = (
    TreeSettings(0.03, 600, 15, 50, 10.0, 0.1),
    TreeSettings(0.03, 500, 8, 20, 10.0, 0.3),
    TreeSettings(0.05, 500, 4, 20, 1.0, 0.3),
)
"""Chosen among by tuning AUROC, each with its best number of trees."""


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
    """Fit the probe (`model`, `untrained`), `logistic` or `pca` row of the comparison.

    On simple features values are winsorised and missing indicators added; `pca` keeps at most
    64 whitened components of those.
    """
    probe, notes = fit_probe(
        train_x,
        train_label,
        tuning_x,
        tuning_label,
        tabular=source == "features",
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
    return Scorer(
        name="model",
        input="logit",
        predict=lambda x: sigmoid(slope * np.asarray(x, dtype=np.float64) + offset),
        predict_raw=lambda x: sigmoid(np.asarray(x, dtype=np.float64)),
        threshold=choose_threshold(y, sigmoid(slope * given + offset)),
        chosen={},
        notes=(note,) if note else (),
    )


def fit_gbm(
    train_x: NDArray[Any],
    train_label: NDArray[Any],
    tuning_x: NDArray[Any],
    tuning_label: NDArray[Any],
    *,
    seed: int = 0,
    num_seeds: int = GBM_SEEDS,
    grid: tuple[TreeSettings, ...] = GBM_GRID,
) -> Scorer:
    """Gradient-boosted trees: settings chosen by tuning AUROC, probabilities of seeds averaged.

    The number of trees is the best multiple of `GBM_STEP` on tuning. Where tuning has one class
    only, a stratified fifth of train takes its place for the choice; where that is impossible
    too, the first settings are used with a third of their trees. Train with one class only
    predicts its prevalence. Notes say which of these happened.
    """
    x, y = np.asarray(train_x, dtype=np.float32), np.asarray(train_label, dtype=np.int64)
    tuning_y = np.asarray(tuning_label, dtype=np.int64)
    columns = _varying(x)
    if np.unique(y).size < 2 or not columns.size:
        constant = float(y.mean()) if y.size else 0.5
        note = "train has one class or no varying feature: everybody gets the train prevalence"
        return _ensemble([lambda rows: np.full(len(rows), constant)], tuning_x, tuning_y, {}, note)
    check_x = np.asarray(tuning_x, dtype=np.float32)[:, columns]
    with few_threads(x):
        settings, num_trees, choice = _choose_trees(x[:, columns], y, check_x, tuning_y, grid, seed)
        seeds = range(seed + 1, seed + 1 + num_seeds)
        members = [_member(settings, num_trees, x, y, columns, member) for member in seeds]
    chosen = {
        "learning_rate": settings.learning_rate,
        "num_trees": float(num_trees),
        "max_leaf_nodes": float(settings.max_leaf_nodes),
        "min_samples_leaf": float(settings.min_samples_leaf),
        "num_seeds": float(num_seeds),
    }
    return _ensemble(members, tuning_x, tuning_y, chosen, choice)


def seed_spread(scorer: Scorer, x: NDArray[Any], label: NDArray[Any]) -> dict[str, float]:
    """AUROC of the single seeds of an ensemble: `seed_mean`, `seed_min`, `seed_max`."""
    if len(scorer.members) < 2 or np.unique(label).size < 2:
        return {}
    scores = [roc_auc_score(label, member(x)) for member in scorer.members]
    return {
        "seed_mean": float(np.mean(scores)),
        "seed_min": float(np.min(scores)),
        "seed_max": float(np.max(scores)),
    }


def _ensemble(
    members: list[Callable[[NDArray[Any]], Array]],
    tuning_x: NDArray[Any],
    tuning_y: NDArray[np.int64],
    chosen: dict[str, float],
    note: str | None,
) -> Scorer:
    def predict_raw(x: NDArray[Any]) -> Array:
        return np.mean([member(x) for member in members], axis=0)

    raw = logit(predict_raw(tuning_x))
    slope, offset, platt_note = fit_platt(raw, tuning_y)
    return Scorer(
        name="gbm",
        input="features",
        predict=lambda x: sigmoid(slope * logit(predict_raw(x)) + offset),
        predict_raw=predict_raw,
        threshold=choose_threshold(tuning_y, sigmoid(slope * raw + offset)),
        chosen=chosen,
        notes=tuple(n for n in (note, platt_note) if n),
        members=tuple(members),
    )


def _choose_trees(
    x: NDArray[Any],
    y: NDArray[np.int64],
    tuning_x: NDArray[Any],
    tuning_y: NDArray[np.int64],
    grid: tuple[TreeSettings, ...],
    seed: int,
) -> tuple[TreeSettings, int, str | None]:
    note = None
    fit_x, fit_y, check_x, check_y = x, y, tuning_x, tuning_y
    if np.unique(tuning_y).size < 2:
        if np.bincount(y).min() < 5:
            trees = max(1, grid[0].num_trees // 3)
            return grid[0], trees, "default trees: too few rows of one class to choose on"
        fit_x, check_x, fit_y, check_y = train_test_split(
            x, y, test_size=0.2, stratify=y, random_state=seed
        )
        note = "trees chosen on a fifth of train: tuning has one class only"
    best, best_trees, best_score = grid[0], grid[0].num_trees, -np.inf
    for settings in grid:
        model = _fit_trees(settings, settings.num_trees, fit_x, fit_y, seed)
        for count, p in enumerate(model.staged_predict_proba(check_x), start=1):
            if count % GBM_STEP:
                continue
            score = roc_auc_score(check_y, p[:, 1])
            if score > best_score:
                best, best_trees, best_score = settings, count, score
    return best, best_trees, note


def _varying(x: NDArray[np.float32]) -> NDArray[np.int64]:
    """Columns with two values, or one value and missing rows; binning fails without any value."""
    absent = np.isnan(x)
    low = np.where(absent, np.inf, x).min(axis=0, initial=np.inf)
    high = np.where(absent, -np.inf, x).max(axis=0, initial=-np.inf)
    return np.flatnonzero((low < high) | (absent.any(axis=0) & (low == high)))


def _member(
    settings: TreeSettings,
    num_trees: int,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    columns: NDArray[np.int64],
    seed: int,
) -> Callable[[NDArray[Any]], Array]:
    model = _fit_trees(settings, num_trees, x[:, columns], y, seed)

    def predict(rows: NDArray[Any]) -> Array:
        chosen = np.asarray(rows, dtype=np.float32)[:, columns]
        with few_threads(chosen):
            return np.asarray(model.predict_proba(chosen)[:, 1], dtype=np.float64)

    return predict


def _fit_trees(
    settings: TreeSettings, num_trees: int, x: NDArray[Any], y: NDArray[np.int64], seed: int
) -> HistGradientBoostingClassifier:
    # A leaf of 50 rows is no leaf for 100 patients.
    smallest_leaf = min(settings.min_samples_leaf, max(3, len(y) // 40))
    return HistGradientBoostingClassifier(
        learning_rate=settings.learning_rate,
        max_iter=num_trees,
        max_leaf_nodes=settings.max_leaf_nodes,
        min_samples_leaf=smallest_leaf,
        l2_regularization=settings.l2,
        max_features=settings.column_share,
        early_stopping=False,
        random_state=seed,
    ).fit(x, y)
