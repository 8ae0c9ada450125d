"""Do prediction sets hold the truth as often as promised, for everybody and in each group?"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.bootstrap import bootstrap
from ehr_ray.evaluation.metrics.conformal import PredictionSets
from ehr_ray.evaluation.metrics.weighted import Array
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.table import Cell, Table
from ehr_ray.evaluation.tasks.downstream import TaskScores
from ehr_ray.evaluation.tasks.subgroups import (
    MIN_OF_A_CLASS,
    MIN_ROWS,
    TOO_FEW,
    Division,
    keys_of,
)
from ehr_ray.evaluation.tasks.verdicts import MODEL, interval

COVERAGE: Final = ("coverage", "coverage_positive", "coverage_negative")
SIZES: Final = ("single", "both", "neither")


def prediction_set_result(
    sets: PredictionSets,
    divisions: Sequence[Division],
    scores: TaskScores,
    split: str,
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> SuiteResult:
    """Measure sets that were fitted on tuning on a split's rows, and in every group of them.

    Keys are `<split>/sets/<metric>` and `<split>/sets/<name>/<group>/<metric>`: `coverage`, of all
    rows and of those with and without the outcome, with bounds; the shares of rows whose set is a
    `single` answer, `both` or `neither`. Groups of less than `MIN_ROWS` rows have none, a class of
    less than `MIN_OF_A_CLASS` rows no coverage of its own.
    """
    label, possible = scores.labels[split], sets.possible(scores.probabilities[split][MODEL])
    groups: list[tuple[str, str, NDArray[np.bool_]]] = [
        ("everybody", "", np.ones(label.size, dtype=bool))
    ]
    keys = keys_of([division.name for division in divisions])
    for division in divisions:
        members = dict(division.members())
        of_group = keys_of([*division.groups, *members])
        groups += [
            (f"{division.name}: {name}", f"/{keys[division.name]}/{of_group[name]}", rows)
            for name, rows in members.items()
        ]
    metrics: dict[str, float] = {}
    lines: list[tuple[Cell, ...]] = []
    for title, at, rows in groups:
        prefix = f"{split}/sets{at}"
        if rows.sum() >= MIN_ROWS or not at:
            subject = scores.subjects[split][rows]
            draws = {"subject": subject, "seed": seed, "num_bootstrap": num_bootstrap}
            found = _measured(label[rows], possible[rows], draws)
            metrics |= {f"{prefix}/{key}": value for key, value in found.items()}
        lines.append(_line(title, int(rows.sum()), metrics, prefix))
    return SuiteResult(metrics=metrics, sections={"Prediction sets": _table(lines, sets)})


def _measured(
    label: NDArray[np.bool_], possible: NDArray[np.bool_], draws: Mapping[str, Any]
) -> dict[str, float]:
    held = possible[np.arange(label.size), label.astype(int)]
    among = dict(zip(COVERAGE, (np.ones_like(label), label, ~label), strict=True))
    enough = {n: r for n, r in among.items() if n == "coverage" or r.sum() >= MIN_OF_A_CLASS}
    functions = {name: partial(_share, held=held, among=rows) for name, rows in enough.items()}
    out: dict[str, float] = {}
    for name, found in bootstrap(functions, label.size, **draws).items():
        out |= {name: found.value, f"{name}/low": found.low, f"{name}/high": found.high}
    size = possible.sum(axis=1)
    shares = {name: float((size == n).mean()) for name, n in zip(SIZES, (1, 2, 0), strict=True)}
    return out | shares


def _share(w: Array, *, held: NDArray[np.bool_], among: NDArray[np.bool_]) -> Array:
    """Return the share of the rows `among` that are `held`, in each resample; NaN without any."""
    with np.errstate(invalid="ignore"):
        return (w @ (held & among)) / (w @ among.astype(np.float64))


def _line(title: str, rows: int, metrics: Mapping[str, float], prefix: str) -> tuple[Cell, ...]:
    cells: list[Cell] = [
        interval(metrics, f"{prefix}/{name}") if f"{prefix}/{name}" in metrics else TOO_FEW
        for name in COVERAGE
    ]
    cells += [metrics.get(f"{prefix}/{name}", TOO_FEW) for name in SIZES]
    return title, f"{rows:,}", *cells


def _table(lines: Sequence[tuple[Cell, ...]], sets: PredictionSets) -> Table:
    always = [
        answer
        for answer, bound in (("yes", sets.least_yes), ("no", sets.most_no))
        if not np.isfinite(bound)
    ]
    said = f" Tuning has too few rows to leave out {' or '.join(always)}." if always else ""
    return Table(
        columns=(
            "Group",
            "Rows",
            "Coverage",
            "With the outcome",
            "Without it",
            "One answer",
            "Both",
            "Neither",
        ),
        rows=tuple(lines),
        caption="A set holds the answers that are possible at a row's risk: one, both where the "
        f"model cannot tell, or neither. {1 - sets.miss:.0%} of the sets are to hold the truth, "
        "among rows with the outcome and among those without it (split-conformal, fitted on "
        "tuning). That is promised for patients like those of tuning taken together, not for a "
        "group or another cohort, and only nearly, since tuning also chose checkpoint and "
        f"calibration.{said}",
    )
