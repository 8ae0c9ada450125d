"""A model beside its baselines on a task whose labels are numbers or classes.

As `downstream` does for binary labels: fit once on train and tuning, score any split.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics import classes as class_metrics
from ehr_ray.evaluation.metrics import regression
from ehr_ray.evaluation.metrics.bootstrap import bootstrap
from ehr_ray.evaluation.metrics.weighted import Statistic
from ehr_ray.evaluation.table import Cell, Table
from ehr_ray.evaluation.tasks.baselines import FEATURES, FITTED_TITLES, TITLES
from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.linear import Linear, LinearModel, fit_multinomial, fit_ridge
from ehr_ray.evaluation.tasks.trees import fit_trees
from ehr_ray.evaluation.tasks.verdicts import (
    LOWER_IS_BETTER,
    MODEL,
    PROBE,
    interval,
    metric_prefix,
    outcome,
    signed,
    verdicts,
)
from ehr_ray.events.label_tasks import Kind

Array = NDArray[np.float64]

JUDGED: Final[Mapping[Kind, tuple[str, str]]] = {
    "regression": ("mae", "rmse"),
    "classes": ("macro_auroc", "log_loss"),
}
"""Metrics with a verdict; the first has a sentence for each baseline."""
HEADS: Final = {
    "mae": "MAE",
    "rmse": "RMSE",
    "r2": "R²",
    "spearman": "Spearman",
    "macro_auroc": "macro AUROC",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
}
METRICS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "regression": regression.METRICS,
    "classes": class_metrics.METRICS,
}
LINEAR: Final[Mapping[Kind, str]] = {"regression": "ridge", "classes": "logistic"}
CONSTANT: Final[Mapping[Kind, str]] = {"regression": "mean", "classes": "majority"}


@dataclass(frozen=True)
class Scorer:
    """A fitted row of the comparison."""

    input: str
    """Which array of a split it reads."""
    predict: Callable[[NDArray[Any]], Array]
    """Rows of it to numbers float[N], or to probabilities of classes float[N, K]."""
    chosen: Mapping[str, float]
    notes: tuple[str, ...] = ()
    model: LinearModel | None = None
    """What `predict` is of, where it is linear."""


@dataclass(frozen=True)
class KindScores:
    """What `downstream.TaskScores` is, of numbers or classes."""

    kind: Kind
    classes: tuple[str, ...]
    metrics: dict[str, float]
    """`held_out/mae`, `baseline/gbm/held_out/mae`, ..., each with `/low` and `/high`, and
    `<metric>_difference` of a baseline: model minus it, paired by row."""
    predicted: Mapping[str, Mapping[str, Array]]
    """By split and model, float[N], or probabilities of classes float[N, K]."""
    labels: Mapping[str, NDArray[Any]]
    verdicts: tuple[str, ...]
    """On the last split scored; what is lost first."""
    notes: tuple[str, ...]
    probe: LinearModel | None = None
    """Of the model's embedding; None where the model answers by itself."""


def fit_kind(
    train: Split, tuning: Split, kind: Kind, classes: tuple[str, ...], *, seed: int = 0
) -> dict[str, Scorer]:
    """Fit what is compared, by name: `model` is its own output, else a probe of its embedding.

    Baselines are left out where a split lacks what they read.
    """

    def linear(source: str) -> Scorer:
        arrays = (getattr(train, source), train.label, getattr(tuning, source), tuning.label)
        tabular = source in ("features", "rich")
        found: Linear
        if kind == "regression":
            found = fit_ridge(*arrays, tabular=tabular)
        else:
            found = fit_multinomial(*arrays, len(classes), tabular=tabular)
        return Scorer(source, found.model.predict, found.chosen, found.notes, found.model)

    def trees(source: str) -> Scorer:
        x = getattr(train, source)
        found = fit_trees(x, train.label, seed=seed, kind=kind, num_classes=len(classes))
        mean = lambda rows: np.mean([member(rows) for member in found.members], axis=0)  # noqa: E731
        return Scorer(source, mean, found.chosen, found.notes)

    own = train.logit is not None and tuning.logit is not None
    scorers = {MODEL: Scorer("logit", _own(kind), {}) if own else linear("embedding")}
    if own:
        scorers[PROBE] = linear("embedding")
    for source, ending in (("features", ""), ("rich", "_rich")):
        if getattr(train, source) is not None and getattr(tuning, source) is not None:
            scorers[f"gbm{ending}"] = trees(source)
            scorers[f"{LINEAR[kind]}{ending}"] = linear(source)
    if train.untrained is not None and tuning.untrained is not None:
        scorers["untrained"] = linear("untrained")
    if train.features is not None:
        scorers[CONSTANT[kind]] = _constant(train.label, kind, len(classes))
    return scorers


def score_kind(
    fitted: Mapping[str, Scorer],
    splits: Mapping[str, Iterable[Split]],
    kind: Kind,
    classes: tuple[str, ...],
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> KindScores:
    """Score every split with all that was fitted; the last split is the one judged.

    A split comes in blocks of its rows, each of which is let go once it is answered.
    """
    metrics: dict[str, float] = {}
    predicted: dict[str, dict[str, Array]] = {}
    labels: dict[str, NDArray[Any]] = {}
    for split_name, blocks in splits.items():
        said, label, subject = _answers(fitted, blocks)
        predicted[split_name], labels[split_name] = said, label
        functions = {name: _statistics(kind, label, values) for name, values in said.items()}
        for name, own in functions.items():
            found = dict(own)
            if name != MODEL:
                pairs = {m: _minus(functions[MODEL][m], f) for m, f in own.items()}
                found |= {f"{metric}_difference": pair for metric, pair in pairs.items()}
            if name == CONSTANT["regression"]:  # it ranks nobody
                found = {k: f for k, f in found.items() if not k.startswith("spearman")}
            at = metric_prefix(name, split_name)
            metrics[f"{at}/n"] = float(len(label))
            drawn = bootstrap(
                found,
                len(label),
                subject=subject,
                seed=seed,
                num_bootstrap=num_bootstrap,
            )
            for key, one in drawn.items():
                metrics |= {f"{at}/{key}": one.value}
                metrics |= {f"{at}/{key}/low": one.low, f"{at}/{key}/high": one.high}
    for name, scorer in fitted.items():
        prefix = "probe" if name == MODEL else f"baseline/{name}"
        metrics |= {f"{prefix}/chosen/{key}": value for key, value in scorer.chosen.items()}
    return KindScores(
        kind=kind,
        classes=classes,
        metrics=metrics,
        predicted=predicted,
        labels=labels,
        verdicts=_judgement(metrics, list(splits)[-1], kind, [n for n in fitted if n != MODEL]),
        notes=tuple(f"{TITLES[n]}: {note}" for n, s in fitted.items() for note in s.notes),
        probe=fitted[MODEL].model,
    )


def _answers(
    fitted: Mapping[str, Scorer], blocks: Iterable[Split]
) -> tuple[dict[str, Array], NDArray[Any], NDArray[np.int64]]:
    """Return (what each says of the rows of a split, their labels, whose they are)."""
    said: dict[str, list[Array]] = {name: [] for name in fitted}
    label, subject = [], []
    for rows in blocks:
        for name, scorer in fitted.items():
            said[name].append(scorer.predict(getattr(rows, scorer.input)))
        label.append(rows.label)
        subject.append(rows.subject_id)
    found = {name: np.concatenate(values) for name, values in said.items()}
    return found, np.concatenate(label), np.concatenate(subject)


def kind_table(scores: KindScores, split: str) -> Table:
    """Return the model and its baselines on one split, with verdicts."""
    names, judged, rows = METRICS[scores.kind], JUDGED[scores.kind], []
    for name in scores.predicted[split]:
        at = metric_prefix(name, split)
        cells: list[Cell] = [interval(scores.metrics, f"{at}/{metric}") for metric in names]
        for metric in judged:
            difference = interval(scores.metrics, f"{at}/{metric}_difference")
            word = outcome(difference, more_is_better=metric not in LOWER_IS_BETTER)
            cells.append(f"{word} {signed(difference)}" if word else "")
        rows.append((kind_title(name, scores, split), *cells))
    heads = [f"{HEADS[m]} {'↓' if m in LOWER_IS_BETTER else '↑'}" for m in names]
    return Table(
        columns=("", *heads, *(f"Verdict on {HEADS[metric]}" for metric in judged)),
        rows=tuple(rows),
        caption="A verdict is on the paired difference, this model minus the row, on the same "
        "patients: loses or beats where its whole 95 % interval lies on one side of 0, ties where "
        "the data cannot tell. Macro metrics are means over the classes that have rows. "
        f"{FEATURES}",
    )


def kind_title(name: str, scores: KindScores, split: str) -> str:
    """Return the title of a row; the model's own says whether a probe or the model was fitted."""
    if name == MODEL:
        return FITTED_TITLES["logit" if PROBE in scores.predicted[split] else "probe"]
    return TITLES[name]


def _judgement(
    metrics: Mapping[str, float], split: str, kind: Kind, names: list[str]
) -> tuple[str, ...]:
    """Return a sentence a baseline, losses first; on the second metric where the data tell."""
    first, second = JUDGED[kind]
    more = [s for s in verdicts(metrics, split, second, names) if not s.startswith("cannot")]
    sentences = (*verdicts(metrics, split, first, names), *more)
    return tuple(sorted(sentences, key=lambda sentence: not sentence.startswith("loses")))


def _own(kind: Kind) -> Callable[[NDArray[Any]], Array]:
    """Return what the output of a model trained for the task says."""
    if kind == "regression":
        return lambda rows: np.asarray(rows, np.float64)

    def softmax(rows: NDArray[Any]) -> Array:
        raised = np.exp(np.asarray(rows, np.float64) - np.max(rows, axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))

    return softmax


def _constant(label: NDArray[Any], kind: Kind, num_classes: int) -> Scorer:
    if kind == "regression":
        said = np.asarray(np.mean(label, dtype=np.float64))
    else:
        said = np.bincount(label, minlength=num_classes) / max(1, len(label))
    return Scorer("label", lambda rows: np.repeat(said[None], len(rows), axis=0), {})


def _statistics(kind: Kind, label: NDArray[Any], said: Array) -> dict[str, Statistic]:
    module = regression if kind == "regression" else class_metrics
    return module.statistics(label, said)


def _minus(first: Statistic, second: Statistic) -> Statistic:
    return lambda w: first(w) - second(w)
