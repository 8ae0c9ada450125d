"""Does a risk score hold for everybody? Discrimination and calibration by group of patients."""

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.binary import binary_metrics
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.table import Cell, Table
from ehr_ray.evaluation.tasks.downstream import TaskScores, differences
from ehr_ray.evaluation.tasks.figures import CAPTIONS, Estimate, forest
from ehr_ray.evaluation.tasks.verdicts import MODEL, TREES, interval, metric_prefix, outcome

MIN_OF_A_CLASS: Final = 10
"""Fewer patients with, or without, the outcome give no AUROC: its interval would say nothing."""
MIN_ROWS: Final = 20
"""Fewer patients give no rates either."""
TOO_FEW: Final = "too few"
SHOWN: Final = (MODEL, TREES)
RANKING: Final = ("auroc", "auprc")


@dataclass(frozen=True)
class Division:
    """One way to divide the judged rows."""

    name: str
    """As in `age`."""
    groups: Sequence[str]
    """Names in the order shown."""
    group: Sequence[str | None]
    """Of each row; None where it is not known."""

    def members(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Yield each group that has a row with its rows: bool[N]; the unknown ones last."""
        given = np.array(["" if name is None else name for name in self.group], dtype=object)
        for name in self.groups:
            if (given == name).any():
                yield name, given == name
        if (given == "").any() and (given != "").any():
            yield "not known", given == ""


def most_rows(division: Division, most: int) -> tuple[Division, str]:
    """Return (the division by its groups with the most rows, a sentence on those left out).

    Of equal groups the earlier ones stay; the sentence is empty where all of them do.
    """
    rows = Counter(name for name in division.group if name is not None)
    if len(rows) <= most:
        return division, ""
    kept = sorted((n for n in division.groups if n in rows), key=lambda name: -rows[name])[:most]
    groups = tuple(name for name in division.groups if name in set(kept))
    lost = rows.total() - sum(rows[name] for name in groups)
    return Division(division.name, groups, division.group), (
        f"subgroups by {division.name}: the {most} of {len(rows):,} with the most rows are judged; "
        f"{len(rows) - most:,} with {lost:,} rows are left out"
    )


def subgroup_result(
    divisions: Sequence[Division],
    scores: TaskScores,
    split: str,
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> SuiteResult:
    """Measure the model and the trees in every group of the split's rows.

    Keys are `<split>/subgroups/<name>/<group>/<metric>`, after `baseline/gbm/` for the trees:
    `n`, `positive`, `observed` and `predicted` (rates, the model's mean risk), `auroc` and
    `auprc`, and of the trees the paired `auroc_difference` and `auprc_difference`. Groups with
    less than `MIN_OF_A_CLASS` rows of a class have no `auroc`, below `MIN_ROWS` rows no rates.
    """
    label, probabilities = scores.labels[split], scores.probabilities[split]
    subject = scores.subjects[split]
    metrics: dict[str, float] = {}
    groups: list[tuple[str, str]] = []
    keys = keys_of([division.name for division in divisions])
    for division in divisions:
        members = dict(division.members())
        of_group = keys_of([*division.groups, *members])
        for name, rows in members.items():
            at = f"subgroups/{keys[division.name]}/{of_group[name]}"
            groups.append((f"{division.name}: {name}", at))
            given = {m: probabilities[m][rows] for m in SHOWN if m in probabilities}
            draws = {"subject": subject[rows], "seed": seed, "num_bootstrap": num_bootstrap}
            measured = _measure(label[rows], given, draws)
            for model, values in measured.items():
                prefix = f"{metric_prefix(model, split)}/{at}"
                metrics |= {f"{prefix}/{key}": value for key, value in values.items()}
    if not groups:
        return SuiteResult()
    estimates = _estimates({**scores.metrics, **metrics}, split, groups)
    return SuiteResult(
        metrics=metrics,
        sections={
            "By subgroup: who is ranked well": _ranking_table(metrics, split, groups),
            "By subgroup: whose risk is right": _rate_table(metrics, split, groups),
        },
        figures={"subgroups": forest(estimates, "AUROC")} if len(estimates) > 1 else {},
        captions=CAPTIONS,
    )


def key_of(name: str) -> str:
    """Return a name as part of a metric's key.

    >>> key_of("45 to under 65")
    '45_to_under_65'
    """
    return re.sub(r"[^0-9A-Za-z.-]+", "_", name).strip("_")


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """Return the part of a metric's key of each name, as `key_of`; names alike end with a hash.

    >>> keys_of(["sex", "unit A", "unit/A"])
    {'sex': 'sex', 'unit A': 'unit_A-d95c', 'unit/A': 'unit_A-c593'}
    """
    names = dict.fromkeys(names)
    often = Counter(map(key_of, names))
    return {
        name: key if often[key := key_of(name)] == 1 else f"{key}-{_hash(name)}" for name in names
    }


def _hash(name: str) -> str:
    return f"{zlib.crc32(name.encode()) & 0xFFFF:04x}"


def _measure(
    label: NDArray[np.bool_],
    given: Mapping[str, NDArray[Any]],
    draws: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    positive = int(label.sum())
    ranked = min(positive, label.size - positive) >= MIN_OF_A_CLASS
    names = (*(RANKING if ranked else ()), "prevalence") if label.size >= MIN_ROWS else ()
    result: dict[str, dict[str, float]] = {}
    for model, probability in given.items():
        values = binary_metrics(label, probability, threshold=0.5, names=names, **draws)
        values = {k.replace("prevalence", "observed"): v for k, v in values.items()}
        if label.size >= MIN_ROWS:
            values["predicted"] = float(probability.mean())
        if model == MODEL:
            values["positive"] = float(positive)
        elif ranked and MODEL in given:
            values |= differences(label, given[MODEL], probability, metrics=RANKING, **draws)
        result[model] = values
    return result


def _ranking_table(
    metrics: Mapping[str, float], split: str, rows: Sequence[tuple[str, str]]
) -> Table:
    ours, trees = metric_prefix(MODEL, split), metric_prefix(TREES, split)
    lines: list[tuple[Cell, ...]] = []
    for title, at in rows:
        n, positive = (metrics[f"{ours}/{at}/{key}"] for key in ("n", "positive"))
        line: list[Cell] = [title, f"{n:,.0f}", f"{positive:,.0f}"]
        for metric in RANKING:
            if f"{ours}/{at}/{metric}" not in metrics:
                line += [TOO_FEW, TOO_FEW, ""]
                continue
            gap = interval(metrics, f"{trees}/{at}/{metric}_difference")
            line += [interval(metrics, f"{where}/{at}/{metric}") for where in (ours, trees)]
            line.append(outcome(gap))
        lines.append(tuple(line))
    return Table(
        columns=(
            "Group",
            "Patients",
            "Outcome",
            "AUROC, this model",
            "AUROC, trees",
            "Verdict",
            "AUPRC, this model",
            "AUPRC, trees",
            "Verdict",
        ),
        rows=tuple(lines),
        caption="Groups by what was known at the prediction time. Fewer than "
        f"{MIN_OF_A_CLASS} patients with or without the outcome are too few to rank. The verdict "
        "is on the paired difference to the trees in that group; with many groups one in twenty "
        "wins or loses by chance. AUPRC depends on how common the outcome is: compare it within a "
        "row only.",
    )


def _rate_table(metrics: Mapping[str, float], split: str, rows: Sequence[tuple[str, str]]) -> Table:
    ours, trees = metric_prefix(MODEL, split), metric_prefix(TREES, split)
    lines: list[tuple[Cell, ...]] = []
    for title, at in rows:
        n = metrics[f"{ours}/{at}/n"]
        observed = interval(metrics, f"{ours}/{at}/observed")
        if np.isnan(observed.value):
            lines.append((title, f"{n:,.0f}", *(TOO_FEW,) * 3, ""))
            continue
        risks = [metrics.get(f"{where}/{at}/predicted", np.nan) for where in (ours, trees)]
        off = [
            name
            for name, risk in zip(("this model", "trees"), risks, strict=True)
            if risk < observed.low or risk > observed.high
        ]
        verdict = f"off: {', '.join(off)}" if off else "within the interval"
        lines.append((title, f"{n:,.0f}", observed, *risks, verdict))
    return Table(
        columns=(
            "Group",
            "Patients",
            "Observed rate",
            "Risk, this model",
            "Risk, trees",
            "Verdict",
        ),
        rows=tuple(lines),
        caption="Mean predicted risk beside the rate of the outcome. Calibration is fitted on all "
        "tuning patients together, so a group may be off though the whole is right.",
    )


def _estimates(
    metrics: Mapping[str, float], split: str, rows: Sequence[tuple[str, str]]
) -> list[Estimate]:
    """The rows of the forest plot: everybody first, then the groups that have an AUROC."""
    result = []
    for title, at in [("everybody", ""), *((t, f"/{a}") for t, a in rows)]:
        found = {m: interval(metrics, f"{metric_prefix(m, split)}{at}/auroc") for m in SHOWN}
        shown = {m: i for m, i in found.items() if not np.isnan(i.value)}
        if shown:
            result.append(Estimate(title, shown))
    return result
