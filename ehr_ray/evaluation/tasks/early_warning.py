"""How early does a risk show? The same label, predicted from what was known hours before.

At each hour everything is fitted anew on train and calibrated on tuning, on the events until
then: the probe of a frozen model, the logistic regression, the trees. A model trained for the task
keeps its weights and gives its own output; only its calibration is of the hour. Of an ensemble it
is the network alone, and named so: its trees on rich features are not fitted for each hour.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.binary import binary_metrics
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.table import Cell, Table
from ehr_ray.evaluation.tasks.baselines import (
    SHORT_TITLES,
    Scorer,
    fit_gbm,
    fit_linear,
    fit_own,
)
from ehr_ray.evaluation.tasks.downstream import FittedTask, Split, differences
from ehr_ray.evaluation.tasks.figures import CAPTIONS, by_step
from ehr_ray.evaluation.tasks.trees import GRID
from ehr_ray.evaluation.tasks.verdicts import (
    MODEL,
    NETWORK,
    TREES,
    interval,
    metric_prefix,
    outcome,
)

TREES_OF_AN_HOUR: Final = GRID[0]
"""One setting and one seed, only the number of trees chosen: a full search an hour would take
longer than all the rest of an evaluation."""
RANKING: Final = ("auroc", "auprc")
LOGISTIC: Final = "logistic"
ALONE: Final = (
    " Of this ensemble it is the network alone, beside which the trees on rich features are not "
    "fitted for each hour."
)
AFTER: Final = "hours after the start of the stay"


@dataclass(frozen=True)
class HourRows:
    """The rows of one split at one hour: those whose prediction time is not before it."""

    sample: NDArray[np.int64]
    """Place of each row among the samples of its split."""
    subject_id: NDArray[np.int64]
    """Whose each row is: what intervals resample."""
    label: NDArray[np.bool_]
    inputs: Mapping[str, NDArray[np.floating]]
    """`embedding` or `logit`, and `features`, as far as they are there; N rows each."""


Hours = Mapping[float, HourRows]


@dataclass(frozen=True)
class FittedHour:
    """What was fitted for one hour."""

    hour: float
    scorers: Mapping[str, Scorer]


def fit_hours(
    train: Hours,
    tuning: Hours,
    fitted: FittedTask,
    splits: Mapping[str, Split],
    *,
    seed: int = 0,
) -> list[FittedHour]:
    """Fit every hour that has both classes in train.

    Args:
        train: by hour.
        tuning: by hour.
        fitted: of the whole task; its probe and logistic regression serve an hour whose rows are
            those they were fitted on.
        splits: `train` and `tuning` of the whole task.
        seed: of the trees.
    """
    result = []
    for hour in sorted(train):
        if hour not in tuning or np.unique(train[hour].label).size < 2:
            continue
        same = all(
            _same(by_hour[hour], splits[name])
            for name, by_hour in (("train", train), ("tuning", tuning))
        )
        known = fitted.scorers if same else {}
        scorers = _fit(train[hour], tuning[hour], known, seed)
        if NETWORK in fitted.scorers:
            scorers = {NETWORK: scorers.pop(MODEL), **scorers}
        result.append(FittedHour(hour, scorers))
    return result


def early_warning_result(
    fitted: list[FittedHour],
    judged: Hours,
    split: str,
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> SuiteResult:
    """Measure every fitted hour on the judged split; hours with one class only are left out.

    Keys are `<split>/hours/<hour>/<metric>`, after `baseline/<name>/` for trees and logistic
    regression and for the network of an ensemble, which has no row of its own: `n`, `auroc`,
    `auprc`, and `<metric>_difference` (model, or that network, minus baseline, paired).
    """
    metrics: dict[str, float] = {}
    hours = []
    for one in fitted:
        hour_rows = judged.get(one.hour)
        if hour_rows is None or np.unique(hour_rows.label).size < 2:
            continue
        hours.append(one.hour)
        measured = _measure(one.scorers, hour_rows, seed=seed, num_bootstrap=num_bootstrap)
        for name, values in measured.items():
            at = f"{metric_prefix(name, split)}/hours/{one.hour:g}"
            metrics |= {f"{at}/{key}": value for key, value in values.items()}
    if not hours:
        return SuiteResult()
    names = [
        n
        for n in (MODEL, NETWORK, TREES, LOGISTIC)
        if f"{metric_prefix(n, split)}/hours/{hours[0]:g}/n" in metrics
    ]
    curves = {
        metric: {
            n: [interval(metrics, f"{metric_prefix(n, split)}/hours/{h:g}/{metric}") for h in hours]
            for n in names
        }
        for metric in RANKING
    }
    return SuiteResult(
        metrics=metrics,
        sections={"By hour": _table(metrics, split, hours, names)},
        figures={"early_warning": by_step([f"{h:g}" for h in hours], AFTER, curves)},
        captions=CAPTIONS,
        lines=_lines(metrics, split, hours, names),
    )


def _measure(
    scorers: Mapping[str, Scorer], hour_rows: HourRows, **draws: Any
) -> dict[str, dict[str, float]]:
    """Return the metrics of every model at one hour, by its name."""
    draws["subject"] = hour_rows.subject_id
    judged = next(iter(scorers))
    label, names = hour_rows.label, (*RANKING, "prevalence")
    scored = {
        name: scorer.predict(hour_rows.inputs[scorer.input])
        for name, scorer in scorers.items()
        if scorer.input in hour_rows.inputs
    }
    measured = {}
    for name, probability in scored.items():
        values = binary_metrics(label, probability, threshold=0.5, names=names, **draws)
        if name != judged:
            pair = (scored[judged], probability)
            values |= differences(label, *pair, metrics=RANKING, **draws)
        measured[name] = values
    return measured


def _same(hour_rows: HourRows, whole: Split) -> bool:
    given = {name: getattr(whole, name) for name in hour_rows.inputs}
    return len(hour_rows.sample) == len(whole.label) and all(
        rows is not None and np.array_equal(hour_rows.inputs[name], rows, equal_nan=True)
        for name, rows in given.items()
    )


def _fit(
    train: HourRows, tuning: HourRows, known: Mapping[str, Scorer], seed: int
) -> dict[str, Scorer]:
    scorers: dict[str, Scorer] = {}
    if "logit" in tuning.inputs:
        scorers[MODEL] = fit_own(tuning.inputs["logit"], tuning.label)
    elif MODEL in known:
        scorers[MODEL] = known[MODEL]
    else:
        arrays = _arrays(train, tuning, "embedding")
        scorers[MODEL] = fit_linear(MODEL, "embedding", *arrays, seed=seed)
    if "features" in train.inputs:
        arrays = _arrays(train, tuning, "features")
        scorers[TREES] = fit_gbm(*arrays, seed=seed, num_seeds=1, grid=(TREES_OF_AN_HOUR,))
        scorers[LOGISTIC] = known.get(LOGISTIC) or fit_linear(
            LOGISTIC, "features", *arrays, seed=seed
        )
    return scorers


def _arrays(train: HourRows, tuning: HourRows, name: str) -> tuple[NDArray[Any], ...]:
    return train.inputs[name], train.label, tuning.inputs[name], tuning.label


def _table(metrics: Mapping[str, float], split: str, hours: list[float], names: list[str]) -> Table:
    titles = {
        MODEL: "this model",
        NETWORK: SHORT_TITLES[NETWORK],
        TREES: "trees",
        LOGISTIC: "logistic regression",
    }
    columns = ["Hour", "Patients"]
    for metric in RANKING:
        columns += [f"{metric.upper()}, {titles[name]}" for name in names]
        columns += ["Beside the trees"] * (TREES in names)
    rows, first = [], metric_prefix(names[0], split)
    for hour in hours:
        at = f"hours/{hour:g}"
        line: list[Cell] = [f"{hour:g}\N{NO-BREAK SPACE}h", f"{metrics[f'{first}/{at}/n']:,.0f}"]
        for metric in RANKING:
            line += [interval(metrics, f"{metric_prefix(n, split)}/{at}/{metric}") for n in names]
            if TREES in names:
                gap = interval(metrics, f"{metric_prefix(TREES, split)}/{at}/{metric}_difference")
                line.append(outcome(gap))
        rows.append(tuple(line))
    return Table(
        columns=tuple(columns),
        rows=tuple(rows),
        caption="The same outcome, from the events up to each hour after the start of the stay, "
        "for patients whose (first) prediction time is not before it. Every hour is fitted on "
        "train and calibrated on tuning by itself; its trees are one seed of one setting, not the "
        "tuned ones of the comparison above." + (ALONE if NETWORK in names else ""),
    )


def _lines(
    metrics: Mapping[str, float], split: str, hours: list[float], names: list[str]
) -> tuple[str, ...]:
    told = []
    for hour in hours:
        values = [
            metrics[f"{metric_prefix(n, split)}/hours/{hour:g}/auroc"]
            for n in names
            if n != LOGISTIC
        ]
        told.append(f"{hour:g} h {' / '.join(f'{v:.3f}' for v in values)}")
    beside = " / trees" if TREES in names else ""
    who = SHORT_TITLES[names[0]]
    return (f"early warning, AUROC of {who}{beside}: {', '.join(told)}",)
