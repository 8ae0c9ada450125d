"""A score in another place: is its risk right there, what does a refit give, what is different?"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from ehr_ray.evaluation.metrics.bootstrap import bootstrap
from ehr_ray.evaluation.metrics.calibration import calibration_statistics, refitted
from ehr_ray.evaluation.metrics.weighted import statistics
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.table import Cell, Interval, Table
from ehr_ray.evaluation.tasks.baselines import TITLES
from ehr_ray.evaluation.tasks.downstream import TaskScores
from ehr_ray.evaluation.tasks.subgroups import keys_of
from ehr_ray.evaluation.tasks.verdicts import MODEL, TREES, metric_prefix
from ehr_ray.events.features import STATISTICS
from ehr_ray.events.mixing import splitmix64, unit_interval

COMPARED: Final = (MODEL, TREES, "logistic")
MEASURES: Final = ("brier", "ece", "calibration_in_the_large", "calibration_slope")
COLUMNS: Final = ("Brier", "ECE", "Calibration in the large", "Calibration slope")
SHOWN: Final = 20
"""Variables in the table of drift."""
MIN_PATIENTS: Final = 10
"""Fewer patients with a value give no distance."""


def calibration_result(
    scores: TaskScores,
    split: str,
    *,
    share: float | None = None,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> SuiteResult:
    """Measure calibration of the model, the trees and logistic regression on a split.

    Keys are `<split>/calibration_slope`, `<split>/calibration_in_the_large`, after
    `baseline/gbm/` for the trees. With a `share`, intercept and slope are refitted on the rows of
    that share of the subjects, by a hash of their ids, and everything is measured once more on the
    others: `<split>/recalibration/{before,after}/<measure>`, and `.../brier_change`.
    """
    label, subject = scores.labels[split], scores.subjects[split]
    draws: dict[str, Any] = {"seed": seed, "num_bootstrap": num_bootstrap}
    metrics: dict[str, float] = {}
    rows: list[tuple[Cell, ...]] = []
    lines: list[str] = []
    fit = np.zeros(len(label), bool) if share is None else _drawn(subject, share, seed)
    rest = ~fit
    for name in (n for n in COMPARED if n in scores.probabilities[split]):
        p, at = scores.probabilities[split][name], metric_prefix(name, split)
        whole = _measured(label, p, subject, draws)
        metrics |= _flat(at, {k: whole[k] for k in MEASURES[2:]})
        if share is None:
            rows.append((TITLES[name], *(whole[k] for k in MEASURES)))
            continue
        try:
            again = refitted(label[fit], p[fit])
        except ValueError as error:
            lines.append(f"{TITLES[name]}: {error} on {fit.sum()} rows; raise --recalibrate")
            continue
        before = _measured(label[rest], p[rest], subject[rest], draws)
        after = _measured(label[rest], again(p[rest]), subject[rest], draws)
        change = _brier_change(label[rest], again(p[rest]), p[rest], subject[rest], draws)
        metrics |= _flat(f"{at}/recalibration/before", before)
        metrics |= _flat(f"{at}/recalibration/after", after)
        metrics |= _flat(f"{at}/recalibration", {"brier_change": change})
        rows.append((f"{TITLES[name]}, as it is", *(before[k] for k in MEASURES)))
        rows.append((f"{TITLES[name]}, refitted", *(after[k] for k in MEASURES)))
        if name == MODEL:
            lines.append(
                f"intercept and slope refitted on {fit.sum():,} rows: Brier {before['brier']} "
                f"before and {after['brier']} after, on the other {rest.sum():,} rows"
            )
    if f"{split}/calibration_slope" in metrics:
        lines.insert(0, _line(metrics, split))
    where = f"on the {rest.sum():,} rows of the subjects that were not refitted on"
    caption = f"Risks of {split}, " + (where if share else f"on all {len(label):,} rows") + "."
    table = Table(("Model", *COLUMNS), tuple(rows), caption)
    return SuiteResult(
        metrics=metrics,
        sections={"Calibration in the other cohort": table} if rows else {},
        lines=tuple(lines),
    )


def drift_result(
    codes: Sequence[str],
    home: NDArray[np.floating],
    judged: NDArray[np.floating],
    split: str,
) -> SuiteResult:
    """Measure how far each variable's distribution is from that in the run's own train split.

    Of each patient the mean value until the prediction counts, or the static value. The distance
    is the largest difference of the two distribution functions (Kolmogorov and Smirnov), 0 to 1.
    Keys are `<split>/drift/<code>/ks`, and the shares of patients who have the variable,
    `.../measured` and `.../measured_at_home`. `home` and `judged` are `simple_features` of
    `codes`, [N, F] and [M, F]; columns after those are passed over.
    """
    metrics: dict[str, float] = {}
    rows: list[tuple[float, tuple[Cell, ...]]] = []
    keys = keys_of(codes)
    for code, one, other in zip(codes, _values(home, codes), _values(judged, codes), strict=True):
        at = f"{split}/drift/{keys[code]}"
        shares = [float(there.mean()) if there.size else np.nan for there in (one[1], other[1])]
        metrics |= {f"{at}/measured_at_home": shares[0], f"{at}/measured": shares[1]}
        ours, theirs = one[0][~np.isnan(one[0])], other[0][~np.isnan(other[0])]
        if min(len(ours), len(theirs)) < MIN_PATIENTS:
            continue
        distance = float(ks_2samp(ours, theirs, method="asymp").statistic)
        metrics[f"{at}/ks"] = distance
        rows.append((distance, (code, *shares, _median(ours), _median(theirs), distance)))
    rows.sort(key=lambda row: -row[0])
    shown = tuple(cells for _, cells in rows[:SHOWN])
    caption = (
        "Medians of patients' means. The distance is that of Kolmogorov and Smirnov: 0 is the "
        "same distribution, 1 none in common; the share of patients tells what is measured less."
    )
    head = ("Variable", "Patients at home", "Patients here", "Median at home", "Median here")
    table = Table((*head, "Distance"), shown, caption)
    return SuiteResult(
        metrics=metrics,
        sections={"Drift of variables": table} if shown else {},
        lines=(_drift_line(rows),) if rows else (),
    )


def _drawn(subject: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    salt = splitmix64(np.array([seed + 1], np.int64).view(np.uint64))
    return unit_interval(splitmix64(splitmix64(subject.view(np.uint64)) ^ salt)) < share


def _measured(
    label: NDArray[Any], p: NDArray[Any], subject: NDArray[Any], draws: Mapping[str, Any]
) -> dict[str, Interval]:
    y, p = np.asarray(label, np.float64), np.asarray(p, np.float64)
    usual = statistics(y, p)
    functions = {k: usual[k] for k in MEASURES[:2]} | calibration_statistics(y, p)
    return bootstrap(functions, len(y), subject=subject, biased={"ece": np.mean}, **draws)


def _brier_change(
    label: NDArray[Any],
    after: NDArray[Any],
    before: NDArray[Any],
    subject: NDArray[Any],
    draws: Mapping[str, Any],
) -> Interval:
    change = np.square(after - label) - np.square(before - label)
    mean = partial(_weighted_mean, x=change)
    return bootstrap({"change": mean}, len(change), subject=subject, **draws)["change"]


def _weighted_mean(w: NDArray[np.float64], *, x: NDArray[np.float64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = (w @ x) / w.sum(axis=1)
    return mean


def _flat(at: str, found: Mapping[str, Interval]) -> dict[str, float]:
    out: dict[str, float] = {}
    for key, one in found.items():
        out |= {f"{at}/{key}": one.value, f"{at}/{key}/low": one.low, f"{at}/{key}/high": one.high}
    return out


def _line(metrics: Mapping[str, float], split: str) -> str:
    told = []
    for key, name in (("calibration_slope", "slope"), ("calibration_in_the_large", "in the large")):
        at = f"{split}/{key}"
        told.append(f"{name} {Interval(*(metrics[k] for k in (at, f'{at}/low', f'{at}/high')))}")
    return f"calibration in the other cohort: {', '.join(told)} (1 and 0 are right)"


def _values(
    features: NDArray[np.floating], codes: Sequence[str]
) -> list[tuple[NDArray[np.floating], NDArray[np.bool_]]]:
    """Return each code's (value of each patient, NaN where none; whether there was an event)."""
    shape = (len(features), len(codes), len(STATISTICS))
    table = features[:, : shape[1] * shape[2]].reshape(shape)
    mean, static, count = (table[:, :, STATISTICS.index(n)] for n in ("mean", "static", "count"))
    value = np.where(np.isnan(mean), static, mean)
    there = (count > 0) | ~np.isnan(static)
    return [(value[:, i], there[:, i]) for i in range(len(codes))]


def _median(values: NDArray[np.floating]) -> str:
    return f"{np.median(values):.4g}"


def _drift_line(rows: Sequence[tuple[float, tuple[Cell, ...]]]) -> str:
    told = ", ".join(f"{cells[0]} {distance:.2f}" for distance, cells in rows[:3])
    middle = float(np.median([distance for distance, _ in rows]))
    return f"drift of {len(rows)} variables: distance {middle:.2f} in the middle, largest of {told}"
