"""The results of an evaluation as tables to read and to load: results.md and results.csv."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np

from ehr_ray.evaluation.table import Cell, Interval, Table
from ehr_ray.evaluation.tasks.baselines import FEATURES, TITLES, title_of
from ehr_ray.evaluation.tasks.verdicts import (
    BLEND,
    LOWER_IS_BETTER,
    MODEL,
    NETWORK,
    TREES,
    interval,
    metric_prefix,
    outcome,
    signed,
)

SHOWN: Final = {
    "auroc": ("AUROC", True),
    "auprc": ("AUPRC", True),
    "min_se_ppv": ("Event 1: min(Se, P+)", True),
    "event2": ("Event 2: H / range", False),
    "brier": ("Brier", False),
    "ece": ("ECE", False),
}
"""Metrics of the comparison: heading and whether more is better."""
JUDGED: Final = ("auroc", "auprc")
"""Metrics with a verdict in the table; `results.csv` has one for every paired metric."""
SEEN: Final = {
    "train": "Caution: models were fitted on these patients; the numbers say nothing of others.",
    "tuning": "Caution: checkpoint, calibration and thresholds were chosen on these patients; "
    "the numbers are better than on others.",
}
"""What a split that was used before says too well."""
COLUMNS: Final = (
    "split",
    "part",
    "model",
    "metric",
    "value",
    "low",
    "high",
    "difference_of",
    "difference",
    "difference_low",
    "difference_high",
    "verdict",
)

_KEY: Final = re.compile(
    r"(?:baseline/(?P<model>[^/]+)/)?(?P<split>train|tuning|held_out)/"
    r"(?P<part>(?:hours/[^/]+/|(?:subgroups|sets)/[^/]+/[^/]+/|sets/)?)(?P<metric>[^/]+)"
)


def results_table(metrics: Mapping[str, float], split: str) -> Table | None:
    """Return the model and its baselines with a verdict each; None where nothing was compared."""
    names = [n for n in TITLES if f"{metric_prefix(n, split)}/auroc" in metrics]
    if not names:
        return None
    rows = []
    for name in names:
        at = metric_prefix(name, split)
        cells: list[Cell] = [interval(metrics, f"{at}/{metric}") for metric in SHOWN]
        told = [verdict_of(metrics, name, split, metric) for metric in JUDGED]
        rows.append((title_of(name, metrics, split), *cells, *told))
    heads = [f"{title} {'↑' if up else '↓'}" for title, up in SHOWN.values()]
    return Table(
        columns=("", *heads, "Verdict on AUROC", "Verdict on AUPRC"),
        rows=tuple(rows),
        caption="A verdict is on the paired difference, this model minus the row, on the same "
        "patients: loses or beats where its whole 95 % interval lies on one side of 0, ties "
        "where the data cannot tell. Of the average with the trees it is the gain over the trees "
        "alone. Event 1 and Event 2 are the scores of the PhysioNet/CinC Challenge 2012, threshold "
        f"and calibration fixed on tuning; Event 2 grows with the number of patients. {FEATURES}",
    )


def verdict_of(metrics: Mapping[str, float], name: str, split: str, metric: str) -> str:
    """Return `loses -0.020 [-0.042, -0.002]` of a row of the comparison; '' without a pair."""
    _, difference, word = _paired(metrics, name, f"{metric_prefix(name, split)}/{metric}", metric)
    return f"{word} {signed(difference)}" if word else ""


WINNERS: Final = {
    "loses": "The gradient-boosted trees win on",
    "beats": "This model wins on",
    "ties": "This model and the gradient-boosted trees cannot be told apart on",
}
"""How the sentence on each kind of difference begins, in the order told."""


def where_the_trees_win(metrics: Mapping[str, float], split: str) -> str:
    """Return one sentence on every paired metric; '' where there are no trees."""
    found: dict[str, list[str]] = {"loses": [], "beats": [], "ties": []}
    for metric, (title, _) in SHOWN.items():
        key = f"{metric_prefix(TREES, split)}/{metric}"
        _, difference, word = _paired(metrics, TREES, key, metric)
        if word:
            found[word].append(f"{title} ({signed(difference)})")
    if not any(found.values()):
        return ""
    told = [f"{said}: {', '.join(found[word])}." for word, said in WINNERS.items() if found[word]]
    return " ".join([*told, "Differences are this model minus the trees."])


def tidy_csv(metrics: Mapping[str, float]) -> str:
    """Return every task metric as one row of CSV: see `COLUMNS`; undefined ones are left out."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted(_tidy(metrics)))
    return out.getvalue()


def _tidy(metrics: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
    for key, value in metrics.items():
        match = _KEY.fullmatch(key)
        if match is None or match["metric"].endswith(("_difference", "_gain")) or np.isnan(value):
            continue
        model = match["model"] or MODEL
        found = interval(metrics, key)
        of, difference, word = _paired(metrics, model, key, match["metric"])
        numbers = (found.value, found.low, found.high)
        paired = (difference.value, difference.low, difference.high)
        yield (
            match["split"],
            match["part"].rstrip("/") or "all",
            model,
            match["metric"],
            *map(_text, numbers),
            of if word else "",
            *map(_text, paired),
            word,
        )


def _paired(
    metrics: Mapping[str, float], name: str, key: str, metric: str
) -> tuple[str, Interval, str]:
    """Return what was paired, the difference and its verdict ('' where nothing was)."""
    # By hour an ensemble has no row, and its network is what others are held against.
    first = MODEL if key.removeprefix(f"baseline/{name}/") in metrics else NETWORK
    ending, of = (
        ("gain", f"{BLEND} - {TREES}") if name == BLEND else ("difference", f"{first} - {name}")
    )
    difference = interval(metrics, f"{key}_{ending}")
    word = outcome(difference, more_is_better=metric not in LOWER_IS_BETTER)
    if name == BLEND and word:
        word = {"beats": "adds", "ties": "no gain shown", "loses": "takes"}[word]
    return of, difference, word


def _text(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
