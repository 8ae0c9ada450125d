"""A frozen representation beside its baselines on one task: fit once, score any cohort.

`fit_task` fits the probe and every baseline on train and chooses on tuning. `score_task` scores
splits with what was fitted, refitting nothing, so another cohort can be scored by the same call.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.baselines import (
    SHORT_TITLES,
    TITLES,
    Input,
    Scorer,
    fit_gbm,
    fit_linear,
    fit_own,
    seed_spread,
)
from ehr_ray.evaluation.metrics import Interval, binary_metrics, paired_difference, undefined

Array = NDArray[np.float64]

MODEL: Final = "model"
PROBE: Final = "probe"
"""The linear probe on a fine-tuned model's embedding, beside the model's own output."""
BASELINES: Final = ("gbm", "logistic", "pca", "untrained")
_INPUTS: Final[Mapping[str, Input]] = {
    MODEL: "embedding",
    PROBE: "embedding",
    "untrained": "untrained",
    "gbm": "features",
    "logistic": "features",
    "pca": "features",
}


@dataclass(frozen=True)
class Split:
    """The rows of one split that have a label; every array has N rows in the same order."""

    subject_id: NDArray[np.int64]
    prediction_time: NDArray[np.datetime64]
    label: NDArray[np.bool_]
    embedding: NDArray[np.floating]
    """float[N, D], of the trained encoder."""
    untrained: NDArray[np.floating] | None = None
    """float[N, D], of the same encoder before training; None leaves its row out."""
    features: NDArray[np.floating] | None = None
    """float32[N, F], see `ehr_ray.events.features`; None leaves three baselines out."""
    logit: NDArray[np.floating] | None = None
    """float[N], of a model trained for the task: then it is what is judged, and not a probe."""

    def __post_init__(self) -> None:
        for name, rows in vars(self).items():
            if rows is not None and len(rows) != len(self.subject_id):
                raise ValueError(f"{name}: {len(rows)} rows for {len(self.subject_id)} subjects")
        for name in ("embedding", "untrained", "logit"):
            rows = getattr(self, name)
            if rows is not None and not np.isfinite(rows).all():
                raise ValueError(f"{name} holds NaN or infinity: the encoder diverged")


@dataclass(frozen=True)
class FittedTask:
    """The probe and the baselines after fitting.

    `scorers[MODEL]` is the probe, or, for a model trained for the task, its own calibrated output.
    """

    scorers: Mapping[str, Scorer]

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not go as usual while fitting, each with the model it concerns."""
        return tuple(f"{TITLES[s.name]}: {n}" for s in self.scorers.values() for n in s.notes)


@dataclass(frozen=True)
class TaskScores:
    """Flat metrics with contract keys, and what the figures and prediction files need."""

    metrics: dict[str, float]
    """`held_out/auroc`, `baseline/gbm/held_out/auroc`, ..., each with `/low` and `/high`."""
    probabilities: Mapping[str, Mapping[str, Array]]
    """Calibrated probabilities by split and model."""
    uncalibrated: Mapping[str, Array]
    """Probabilities of the model before Platt scaling, by split."""
    labels: Mapping[str, NDArray[np.bool_]]
    verdicts: tuple[str, ...]
    """One sentence a baseline, on the last split scored; the strongest baseline first."""
    notes: tuple[str, ...] = field(default=())


def fit_task(
    train: Split, tuning: Split, *, seed: int = 0, baselines: Sequence[str] = BASELINES
) -> FittedTask:
    """Fit the probe and the baselines on `train`, choose and calibrate on `tuning`.

    A baseline whose input a split does not have is left out. The same splits and seed give the
    same models, so fitted baselines need not be stored.
    """
    scorers: dict[str, Scorer] = {}
    trained = train.logit is not None
    for name in (MODEL, *((PROBE,) if trained else ()), *baselines):
        source: Input = "logit" if trained and name == MODEL else _INPUTS[name]
        x, tuning_x = getattr(train, source), getattr(tuning, source)
        if x is None or tuning_x is None:
            continue
        arrays = (x, train.label, tuning_x, tuning.label)
        if source == "logit":
            scorers[name] = fit_own(tuning_x, tuning.label)
        elif name == "gbm":
            scorers[name] = fit_gbm(*arrays, seed=seed)
        else:
            scorers[name] = fit_linear(name, source, *arrays, seed=seed)
    return FittedTask(scorers)


def score_task(
    fitted: FittedTask,
    splits: Mapping[str, Split],
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> TaskScores:
    """Score every split with every fitted model; the last split is the one judged.

    Besides `METRICS`, each baseline gets `<metric>_difference` (model minus baseline, paired by
    row, for auroc, auprc and brier) and the trees the spread of their seeds.
    """
    metrics: dict[str, float] = {}
    probabilities: dict[str, dict[str, Array]] = {}
    for split_name, split in splits.items():
        scored = {
            name: scorer.predict(getattr(split, scorer.input))
            for name, scorer in fitted.scorers.items()
            if getattr(split, scorer.input) is not None
        }
        probabilities[split_name] = scored
        for name, probability in scored.items():
            scorer = fitted.scorers[name]
            found = binary_metrics(
                split.label,
                probability,
                threshold=scorer.threshold,
                seed=seed,
                num_bootstrap=num_bootstrap,
            )
            if name != MODEL:
                found |= seed_spread_metrics(scorer, split)
                found |= _differences(split.label, scored[MODEL], probability, seed, num_bootstrap)
            prefix = split_name if name == MODEL else f"baseline/{name}/{split_name}"
            metrics |= {f"{prefix}/{key}": value for key, value in found.items()}
    for name, scorer in fitted.scorers.items():
        prefix = "probe" if name == MODEL else f"baseline/{name}"
        metrics[f"{prefix}/threshold"] = scorer.threshold
        metrics |= {f"{prefix}/chosen/{key}": value for key, value in scorer.chosen.items()}
    judged, model = list(splits)[-1] if splits else "", fitted.scorers[MODEL]
    return TaskScores(
        metrics=metrics,
        probabilities=probabilities,
        uncalibrated={
            name: model.predict_raw(getattr(split, model.input)) for name, split in splits.items()
        },
        labels={name: split.label for name, split in splits.items()},
        verdicts=judgement(metrics, judged),
        notes=(*fitted.notes, *_undefined_notes(metrics)),
    )


def seed_spread_metrics(scorer: Scorer, split: Split) -> dict[str, float]:
    """AUROC of the single seeds as `auroc/seed_mean`, `auroc/seed_min`, `auroc/seed_max`."""
    spread = seed_spread(scorer, getattr(split, scorer.input), split.label)
    return {f"auroc/{key}": value for key, value in spread.items()}


def verdicts(metrics: Mapping[str, float], split: str, metric: str = "auroc") -> tuple[str, ...]:
    """A plain sentence a baseline on the difference in `metric`, strongest baseline first.

    The model loses to (or beats) a baseline when the whole interval of the difference lies
    below (above) 0; otherwise the data cannot tell them apart, and the sentence says so.
    """
    rows = []
    for name in (PROBE, *BASELINES):
        key = f"baseline/{name}/{split}/{metric}"
        value = metrics.get(key, np.nan)
        bounds = (metrics.get(f"{key}_difference{end}", np.nan) for end in ("", "/low", "/high"))
        difference = Interval(*bounds)
        if not np.isnan(value) and not np.isnan(difference.value):
            rows.append((value, _sentence(name, difference, metric.upper())))
    return tuple(sentence for _, sentence in sorted(rows, key=lambda row: -row[0]))


def judgement(metrics: Mapping[str, float], split: str) -> tuple[str, ...]:
    """Return the sentences of a report: what is lost first, AUROC and AUPRC both.

    AUROC gets a sentence for each baseline; AUPRC, which a rare outcome moves more, only where
    the data tell the two apart.
    """
    told = [s for s in verdicts(metrics, split, "auprc") if not s.startswith("cannot")]
    sentences = (*verdicts(metrics, split), *told)
    return tuple(sorted(sentences, key=lambda sentence: not sentence.startswith("loses")))


def _sentence(name: str, difference: Interval, metric: str) -> str:
    title = SHORT_TITLES[name]
    size = Interval(abs(difference.value), *sorted((abs(difference.low), abs(difference.high))))
    if difference.high < 0:
        return f"loses to {title} by {size} {metric}"
    if difference.low > 0:
        return f"beats {title} by {size} {metric}"
    return f"cannot be told apart from {title}: difference {_signed(difference)} {metric}"


def _signed(difference: Interval) -> str:
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def _differences(
    label: NDArray[Any], model: Array, baseline: Array, seed: int, num_bootstrap: int
) -> dict[str, float]:
    out: dict[str, float] = {}
    for metric in ("auroc", "auprc", "brier"):
        found = paired_difference(
            label, model, baseline, metric, seed=seed, num_bootstrap=num_bootstrap
        )
        key = f"{metric}_difference"
        out |= {key: found.value, f"{key}/low": found.low, f"{key}/high": found.high}
    return out


def _undefined_notes(metrics: Mapping[str, float]) -> list[str]:
    """One note for each split and model with metrics that cannot be computed."""
    missing: dict[str, list[str]] = {}
    for key in undefined(metrics):
        where, _, name = key.rpartition("/")
        if not name.endswith("_difference"):
            missing.setdefault(where, []).append(name)
    return [
        f"{where}: {', '.join(names)} undefined (no row of one class, or nobody called positive)"
        for where, names in missing.items()
    ]
