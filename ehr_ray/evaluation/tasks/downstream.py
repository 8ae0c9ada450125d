"""A frozen representation beside its baselines on one task: fit once, score any cohort.

`fit_task` fits the probe and every baseline on train and chooses on tuning. `score_task` scores
splits with what was fitted, refitting nothing, so another cohort can be scored by the same call; of
a split it holds the wide columns of one block of rows at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.binary import binary_metrics, paired_differences, undefined
from ehr_ray.evaluation.metrics.thresholds import choose_threshold
from ehr_ray.evaluation.tasks.baselines import (
    TITLES,
    Input,
    Scorer,
    fit_average,
    fit_ensemble,
    fit_gbm,
    fit_linear,
    fit_own,
    fit_stacked,
    seed_spread,
)
from ehr_ray.evaluation.tasks.stacking import OFFSET, PARTS
from ehr_ray.evaluation.tasks.verdicts import (
    BASELINES,
    BLEND,
    MODEL,
    NETWORK,
    PROBE,
    TREES,
    gain,
    judgement,
    metric_prefix,
)

Array = NDArray[np.float64]

COMPARED: Final = ("auroc", "auprc", "min_se_ppv", "event2", "brier")
"""Metrics that get a paired difference."""
_INPUTS: Final[Mapping[str, Input]] = {
    MODEL: "embedding",
    PROBE: "embedding",
    "untrained": "untrained",
    "gbm": "features",
    "gbm_rich": "rich",
    "logistic": "features",
    "logistic_rich": "rich",
    "average_rich": "rich",
    "pca": "features",
}
_AVERAGED: Final = ("gbm_rich", "logistic_rich")
"""What `average_rich` is the mean of."""
_BESIDE: Final = "average_rich"
"""What an ensemble is made of besides the model."""


@dataclass(frozen=True)
class Split:
    """The rows of one split that have a label; every array has N rows in the same order."""

    subject_id: NDArray[np.int64]
    prediction_time: NDArray[np.datetime64]
    label: NDArray[Any]
    """bool, float of a regression, or places of classes, [N]."""
    embedding: NDArray[np.floating]
    """float[N, D], of the trained encoder."""
    untrained: NDArray[np.floating] | None = None
    """float[N, D], of the same encoder before training; None leaves its row out."""
    features: NDArray[np.floating] | None = None
    """float32[N, F], `FeatureReader.simple`; None leaves three baselines out."""
    rich: NDArray[np.floating] | None = None
    """float32[N, G], those and `FeatureReader.extra`; None leaves three baselines out."""
    logit: NDArray[np.floating] | None = None
    """float[N], or of K classes [N, K], of a model trained for the task: what `predict` says of it,
    which is then what is judged, and not a probe."""

    @property
    def ensemble(self) -> NDArray[np.floating] | None:
        """What an ensemble reads, float[N, 1 + G]: `logit` and `rich`; None without both."""
        if self.logit is None or self.rich is None:
            return None
        return np.column_stack([self.logit, self.rich])

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

    `scorers[MODEL]` is the probe, or, for a model trained for the task, its own calibrated output;
    of an ensemble it is the ensemble, and `scorers[NETWORK]` that output.
    """

    scorers: Mapping[str, Scorer]
    blend_threshold: float | None = None
    """Operating point of the blend, chosen on tuning; None where there are no trees."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What did not go as usual while fitting, each with the model it concerns."""
        return tuple(f"{TITLES[s.name]}: {n}" for s in self.scorers.values() for n in s.notes)

    def model_probability(self, split: Split) -> Array:
        """Return the model's calibrated probability of each row, float [N]."""
        model = self.scorers[MODEL]
        return model.predict(getattr(split, model.input))


@dataclass(frozen=True)
class Answers:
    """What fitted models say of N rows, and what they are measured by."""

    subject_id: NDArray[np.int64]
    label: NDArray[np.bool_]
    probabilities: Mapping[str, Array]
    """Calibrated, by model."""
    uncalibrated: Array
    """Of the model before Platt scaling."""
    seeds: Mapping[str, Array]
    """float[S, N]: of each model that averages seeds, what these say."""


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
    thresholds: Mapping[str, float]
    """From what probability on each model says yes, chosen on tuning."""
    subjects: Mapping[str, NDArray[np.int64]]
    """Whose each row is, by split: what intervals resample."""
    verdicts: tuple[str, ...]
    """One sentence a baseline, on the last split scored; the strongest baseline first."""
    notes: tuple[str, ...] = field(default=())
    model: Scorer | None = None
    """What makes probabilities of what the model gives: of an ensemble, of its network alone."""


def fit_task(
    train: Split,
    tuning: Split,
    *,
    seed: int = 0,
    baselines: Sequence[str] = BASELINES,
    ensemble: bool = False,
    stack: Mapping[str, float] | None = None,
) -> FittedTask:
    """Fit the probe and the baselines on `train`, choose and calibrate on `tuning`.

    With `ensemble` a model trained for the task is averaged with `average_rich`, or its parts are
    weighed by `stack` (the weight of each of `stacking.PARTS`, and `offset`), and that is what is
    judged. A baseline whose input a split does not have is left out. The same splits and seed
    give the same models, so fitted baselines need not be stored.
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
        elif name in ("gbm", "gbm_rich"):
            scorers[name] = fit_gbm(*arrays, name=name, source=source, seed=seed)
        elif name == "average_rich":
            parts = tuple(scorers[part] for part in _AVERAGED if part in scorers)
            if len(parts) == len(_AVERAGED):
                scorers[name] = fit_average(name, parts, tuning_x, tuning.label)
        else:
            scorers[name] = fit_linear(name, source, *arrays, seed=seed)
    read = tuning.ensemble
    if ensemble and read is not None and _BESIDE in scorers:
        scorers = {NETWORK: scorers.pop(MODEL), **scorers}
        if stack is not None:
            weights = np.array([stack[name] for name in (*PARTS, OFFSET)])
            stacked = fit_stacked([scorers[n] for n in PARTS], weights, read, tuning.label)
            return FittedTask({MODEL: stacked, **scorers})
        parts = scorers[NETWORK], scorers[_BESIDE]
        return FittedTask({MODEL: fit_ensemble(*parts, read, tuning.label), **scorers})
    threshold = None
    if TREES in scorers:
        threshold = choose_threshold(tuning.label, _blend(_probabilities(scorers, tuning)))
    return FittedTask(scorers, threshold)


def score_task(
    fitted: FittedTask,
    splits: Mapping[str, Iterable[Split]],
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> TaskScores:
    """Score every split with every fitted model; the last split is the one judged.

    A split comes in blocks of its rows, each of which is let go once it is answered.
    Besides `METRICS`, each baseline gets `<metric>_difference` (model minus baseline, paired by
    row, for the metrics of `COMPARED`) and the trees the spread of their seeds. The blend of
    trees and model gets `<metric>_gain` instead: the blend minus the trees.
    """
    metrics: dict[str, float] = {}
    probabilities: dict[str, dict[str, Array]] = {}
    answered: dict[str, Answers] = {}
    thresholds = _thresholds(fitted)
    for split_name, blocks in splits.items():
        answers = answered[split_name] = answer(fitted, blocks)
        scored = {**answers.probabilities}
        if fitted.blend_threshold is not None and TREES in scored:
            scored[BLEND] = _blend(scored)
        probabilities[split_name] = scored
        for name in scored:
            found = _row(name, answers, scored, thresholds, seed, num_bootstrap)
            at = metric_prefix(name, split_name)
            metrics |= {f"{at}/{key}": value for key, value in found.items()}
    for name, threshold in thresholds.items():
        prefix = "probe" if name == MODEL else f"baseline/{name}"
        metrics[f"{prefix}/threshold"] = threshold
        chosen = fitted.scorers[name].chosen if name in fitted.scorers else {}
        metrics |= {f"{prefix}/chosen/{key}": value for key, value in chosen.items()}
    judged, model = list(splits)[-1] if splits else "", fitted.scorers[MODEL]
    return TaskScores(
        metrics=metrics,
        probabilities=probabilities,
        uncalibrated={name: answers.uncalibrated for name, answers in answered.items()},
        labels={name: answers.label for name, answers in answered.items()},
        thresholds=thresholds,
        subjects={name: answers.subject_id for name, answers in answered.items()},
        verdicts=(*judgement(metrics, judged), *gain(metrics, judged)),
        notes=(*fitted.notes, *_undefined_notes(metrics)),
        model=fitted.scorers.get(NETWORK, model),
    )


def answer(fitted: FittedTask, blocks: Iterable[Split]) -> Answers:
    """Return what every fitted model says of the rows of a split, block after block."""
    found: list[Answers] = []
    model = fitted.scorers[MODEL]
    for rows in blocks:
        seeds = {
            name: np.stack([member(getattr(rows, scorer.input)) for member in scorer.members])
            for name, scorer in fitted.scorers.items()
            if scorer.members and getattr(rows, scorer.input) is not None
        }
        found.append(
            Answers(
                rows.subject_id,
                rows.label,
                _probabilities(fitted.scorers, rows),
                model.predict_raw(getattr(rows, model.input)),
                seeds,
            )
        )
    return Answers(
        np.concatenate([one.subject_id for one in found]),
        np.concatenate([one.label for one in found]),
        {
            n: np.concatenate([one.probabilities[n] for one in found])
            for n in found[0].probabilities
        },
        np.concatenate([one.uncalibrated for one in found]),
        {n: np.concatenate([one.seeds[n] for one in found], axis=1) for n in found[0].seeds},
    )


def differences(
    label: NDArray[Any],
    first: Array,
    second: Array,
    *,
    ending: str = "difference",
    thresholds: tuple[float, float] = (0.5, 0.5),
    metrics: Sequence[str] = COMPARED,
    **draws: Any,
) -> dict[str, float]:
    """Return `<metric>_<ending>`, first minus second on the same rows, with interval bounds.

    `draws` are `subject`, `seed` and `num_bootstrap` of `paired_differences`.
    """
    out: dict[str, float] = {}
    found = paired_differences(label, first, second, metrics, thresholds=thresholds, **draws)
    for metric, difference in found.items():
        key = f"{metric}_{ending}"
        out |= {key: difference.value}
        out |= {f"{key}/low": difference.low, f"{key}/high": difference.high}
    return out


def _row(
    name: str,
    split: Answers,
    scored: Mapping[str, Array],
    thresholds: Mapping[str, float],
    seed: int,
    num_bootstrap: int,
) -> dict[str, float]:
    """All that one row of the comparison says about one split."""
    draws: dict[str, Any] = {
        "subject": split.subject_id,
        "seed": seed,
        "num_bootstrap": num_bootstrap,
    }
    found = binary_metrics(split.label, scored[name], threshold=thresholds[name], **draws)
    if name == MODEL:
        return found
    if name in split.seeds:
        spread = seed_spread(split.seeds[name], split.label)
        found |= {f"auroc/{key}": value for key, value in spread.items()}
    first, second = (BLEND, TREES) if name == BLEND else (MODEL, name)
    return found | differences(
        split.label,
        scored[first],
        scored[second],
        ending="gain" if name == BLEND else "difference",
        thresholds=(thresholds[first], thresholds[second]),
        **draws,
    )


def _probabilities(scorers: Mapping[str, Scorer], split: Split) -> dict[str, Array]:
    return {
        name: scorer.predict(getattr(split, scorer.input))
        for name, scorer in scorers.items()
        if getattr(split, scorer.input) is not None
    }


def _blend(scored: Mapping[str, Array]) -> Array:
    return 0.5 * (scored[TREES] + scored[MODEL])


def _thresholds(fitted: FittedTask) -> dict[str, float]:
    chosen = {name: scorer.threshold for name, scorer in fitted.scorers.items()}
    if fitted.blend_threshold is not None:
        chosen[BLEND] = fitted.blend_threshold
    return chosen


def _undefined_notes(metrics: Mapping[str, float]) -> list[str]:
    """One note for each split and model with metrics that cannot be computed."""
    missing: dict[str, list[str]] = {}
    for key in undefined(metrics):
        where, _, name = key.rpartition("/")
        if not name.endswith(("_difference", "_gain")):
            missing.setdefault(where, []).append(name)
    return [
        f"{where}: {', '.join(names)} undefined (no row of one class, or nobody called positive)"
        for where, names in missing.items()
    ]
