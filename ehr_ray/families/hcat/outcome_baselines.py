"""Baselines of an outcome on simple columns: logistic regression, random forest, boosted trees."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from ehr_ray.evaluation.tasks.probe import few_threads
from ehr_ray.events.batched import batched
from ehr_ray.events.options import MODALITIES
from ehr_ray.events.patients import Patient, cohort_shards, read_patients
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.data import collate, transform
from ehr_ray.families.hcat.predict import baseline_codes
from ehr_ray.families.hcat.tokenizer import Tokenizer
from ehr_ray.storage import sync

Array = NDArray[np.float64]

CORE: Final = (MODALITIES.index("clinical"), MODALITIES.index("pathological"))

LOGISTIC: Final = "logistic_clinical_pathological"
TITLES: Final = {
    LOGISTIC: "Logistic regression, clinical + pathological",
    "logistic_tables": "Logistic regression, all tables",
    "forest": "Random forest, all tables",
    "forest_tiles": "Random forest, all tables and tile features (PCA)",
    "trees": "Gradient-boosted trees, all tables",
}
C_GRID: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
TILE_COMPONENTS: Final = 32
GROUP_PATIENTS: Final = 512
"""Patients whose events are held at a time."""
_FOLDS: Final = 5


@dataclass(frozen=True, eq=False)
class Columns:
    """Columns of some rows: float [N, D] with NaN for missing.

    `core` is clinical and pathological, `tables` those and all other small columns, `tiles` the
    long vectors.
    """

    core: Array
    tables: Array
    tiles: Array

    def of(self, rows: NDArray[np.bool_]) -> "Columns":
        """Return the rows that a mask [N] is true for."""
        return Columns(self.core[rows], self.tables[rows], self.tiles[rows])


@dataclass(frozen=True, eq=False)
class SplitColumns:
    """Patients of a split: `subject_id` [N], `columns` of N rows, `label` [N, 2] (-1 unknown)."""

    subject_id: NDArray[np.int64]
    columns: Columns
    label: NDArray[np.int8]


def read_columns(
    cohort: Path,
    split: str,
    config: HCATConfig,
    vocabulary: Vocabulary,
    subjects: Collection[int] | None = None,
) -> SplitColumns:
    """Return a split's columns: a code's mean value, NaN where missing, and 0 or 1 for flags.

    Of `subjects`, or of all; events of some patients alone are held at a time.
    """
    shards = map(sync.in_store, cohort_shards(cohort, split))
    patients = (
        patient
        for shard in shards
        for patient in read_patients(shard, vocabulary)
        if subjects is None or patient.subject_id in subjects
    )
    tokenizer = Tokenizer(config, vocabulary)
    return stacked(
        [
            _columns(group, config, vocabulary, tokenizer)
            for group in batched(patients, GROUP_PATIENTS)
        ]
    )


def _columns(
    patients: Sequence[Patient], config: HCATConfig, vocabulary: Vocabulary, tokenizer: Tokenizer
) -> SplitColumns:
    batch = collate([transform(patient, config, vocabulary) for patient in patients], config)
    mean, count, _ = tokenizer.columns(batch)
    there, layout = (count > 0).numpy(), tokenizer.layout
    values = np.where(there, mean.numpy(), np.nan).astype(np.float64)
    values[:, ~layout.valued] = there[:, ~layout.valued]
    small = baseline_codes(config, vocabulary)
    feature = np.isin(np.arange(len(vocabulary)), np.concatenate(layout.columns))
    columns = Columns(
        values[:, np.isin(layout.modality, CORE) & small],
        values[:, small],
        values[:, feature & ~small],
    )
    return SplitColumns(
        batch["subject_id"].numpy(), columns, batch["label"].numpy().astype(np.int8)
    )


def stacked(splits: Sequence[SplitColumns]) -> SplitColumns:
    """Return splits one after the other."""
    parts = [s.columns for s in splits]
    return SplitColumns(
        np.concatenate([s.subject_id for s in splits]),
        Columns(
            np.concatenate([c.core for c in parts]),
            np.concatenate([c.tables for c in parts]),
            np.concatenate([c.tiles for c in parts]),
        ),
        np.concatenate([s.label for s in splits]),
    )


def fit_baselines(
    train: Columns, label: NDArray[Any], *, seed: int, names: tuple[str, ...] = tuple(TITLES)
) -> Mapping[str, tuple[Callable[[Columns], Array], Array]]:
    """Fit each on the rows whose label is known, 0 or 1.

    Returns, by name, what predicts the positive class of other rows, and predictions for the rows
    of train by models that had not seen them, to choose a threshold on. With fewer than five rows
    of a class everybody gets the share of the positive one.
    """
    y = np.asarray(label).astype(int)
    found = {}
    few = np.bincount(y, minlength=2).min() < _FOLDS
    share = float(y.mean()) if y.size else 0.5
    for name in names:
        view = _view(name)
        x = view(train)
        if not x.shape[1] or (name == "forest_tiles" and not train.tiles.shape[1]):
            continue
        if few:
            found[name] = (_constant(share), np.full(len(y), share))
            continue
        with few_threads(x):
            model = _model(name, x, y, seed, train.tables.shape[1])
            cv = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
            unseen = cross_val_predict(model, x, y, cv=cv, method="predict_proba")[:, 1]
            model.fit(x, y)
        found[name] = (_predictor(model, view), unseen)
    return found


def _constant(share: float) -> Callable[[Columns], Array]:
    return lambda rows: np.full(len(rows.tables), share)


def _predictor(model: Any, view: Callable[[Columns], Array]) -> Callable[[Columns], Array]:
    return lambda rows: np.asarray(model.predict_proba(view(rows))[:, 1], np.float64)


def _view(name: str) -> Callable[[Columns], Array]:
    if name == LOGISTIC:
        return lambda rows: rows.core
    if name == "forest_tiles":
        return lambda rows: np.concatenate([rows.tables, rows.tiles], 1)
    return lambda rows: rows.tables


def _model(name: str, x: Array, y: NDArray[Any], seed: int, num_small: int) -> Any:
    if name.startswith("logistic"):
        return _logistic(_best_c(x, y, seed))
    if name == "trees":
        return HistGradientBoostingClassifier(
            learning_rate=0.03,
            max_iter=120,
            max_leaf_nodes=6,
            min_samples_leaf=20,
            l2_regularization=5.0,
            max_features=0.3,
            early_stopping=False,
            random_state=seed,
        )
    forest = RandomForestClassifier(300, min_samples_leaf=5, random_state=seed)
    steps: list[Any] = [SimpleImputer(strategy="median", keep_empty_features=True)]
    if name == "forest_tiles" and x.shape[1] - num_small > TILE_COMPONENTS:
        size = min(TILE_COMPONENTS, len(x) // 2)  # of x the inner folds have fewer rows
        short = make_pipeline(StandardScaler(), PCA(size, random_state=seed))
        # Columns keep their places through the imputer: tables first, then tiles.
        tiles = slice(num_small, x.shape[1])
        steps.append(ColumnTransformer([("tiles", short, tiles)], remainder="passthrough"))
    return make_pipeline(*steps, forest)


def _logistic(c: float) -> Pipeline:
    imputer = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    return make_pipeline(imputer, StandardScaler(), LogisticRegression(C=c, max_iter=2000))


def _best_c(x: Array, y: NDArray[Any], seed: int) -> float:
    """Return the strength with the least log loss on rows a model had not seen."""
    cv = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    losses = [
        log_loss(y, cross_val_predict(_logistic(c), x, y, cv=cv, method="predict_proba")[:, 1])
        for c in C_GRID
    ]
    return C_GRID[int(np.argmin(losses))]
