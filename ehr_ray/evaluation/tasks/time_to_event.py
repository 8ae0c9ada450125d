"""When each of many codes comes next: a head's risks beside trees and Cox on simple features.

Judged are moments after which a record goes on: the prediction times of the task, or else the end
of the first 24 hours. N rows, K bins, C codes, H horizons.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.bootstrap import bootstrap
from ehr_ray.evaluation.metrics.survival import concordance, time_in_bins
from ehr_ray.evaluation.metrics.weighted import Statistic, statistics
from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput, SuiteResult
from ehr_ray.evaluation.table import Cell, Interval, Table
from ehr_ray.evaluation.tasks.cox import fit_cox
from ehr_ray.evaluation.tasks.hazard_trees import Rows, fit_hazard_trees
from ehr_ray.evaluation.tasks.verdicts import MODEL, metric_prefix
from ehr_ray.events.follow_up import FollowUp, follow_up, followed_codes
from ehr_ray.events.options import Outcome
from ehr_ray.events.outcomes import (
    CENSORED,
    EVENT,
    censoring,
    censoring_weights,
    had_event,
)

Array = NDArray[np.float64]

TREES: Final = "hazard_trees"
COX: Final = "cox"
SHORT: Final = {TREES: "trees", COX: "cox"}
"""What a difference from a baseline is called."""
HORIZONS: Final = (6, 12, 24, 72, 168, 720)
"""Hours within which a code comes or does not."""
FEWEST: Final = 10
"""Rows with the code within a horizon, and without it, below which it is not judged there."""
MOST_CODES: Final = 8
"""Codes that are judged: those that come within a horizon in the most even share of train,
censoring weighed."""
MOST_ROWS: Final = 2000
"""Rows that are judged at most: of a C-index all pairs of them are held."""
FIT_ROWS: Final = 20_000
"""Rows of train, and of tuning, that trees and Cox regression read at most: some 20 kB each."""
LIMITS: Final = ("max_length", "max_rows")
"""Options of models by which a long record is cut to its end."""
HEADING: Final = "When codes come next"


@dataclass(frozen=True, eq=False)
class Question:
    """Whether a code comes within so many hours."""

    place: int
    """Of the code among those of the head."""
    horizon: int

    def answer(self, rows: FollowUp) -> tuple[NDArray[np.int8], Array]:
        """Return 1, 0 or -1 (not known) of each row, and its weight for those lost before, [N]."""
        outcome = Outcome(name="code", event=(), horizon_days=self.horizon / 24)
        days = rows.hours[:, self.place] / 24
        state = np.where(rows.event[:, self.place], EVENT, CENSORED).astype(np.int8)
        weight = censoring_weights(days, state, outcome, censoring(days, state, outcome))
        return had_event(days, state, outcome), weight


def suite(given: SuiteInput) -> SuiteResult:
    """Judge the head on the judged split; nothing of a model without it, or trained for a task."""
    table = given.judged.tables.get("hazards")
    if table is None or not len(table) or given.cohort is None:
        return SuiteResult()
    for day in (False, True) if given.judged.label is not None else (True,):
        result = _judged_at(given, table, day)
        if result is not None:
            return result
    line = f"times to events: fewer than {FEWEST} rows with and without any code, nothing is judged"
    return SuiteResult(lines=(line + _missing_days(given.model, table),))


def _missing_days(model: Any, table: pa.Table) -> str:
    """Return what may be why records have no answer at the end of the first day; '' if all do."""
    records = pc.count_distinct(table["sample"]).as_py()
    days = pc.count_distinct(table.filter(pc.equal(table["day"], 1))["sample"]).as_py()
    limit = next((name for name in LIMITS if getattr(model, name, None)), None)
    if days == records or limit is None:
        return ""
    return (
        f"; {records - days:,} of {records:,} records have nothing after their first 24 hours, or "
        f"are cut by model.{limit}={getattr(model, limit)} to what comes later: train with a "
        "larger one if they are longer"
    )


def _judged_at(given: SuiteInput, table: pa.Table, day: bool) -> SuiteResult | None:
    """Judge at prediction times, or after the first day; None where too few rows go on."""
    assert given.cohort is not None
    codes = followed_codes(given.model.time_to_event_codes, given.vocabulary)
    names = [given.vocabulary.codes[i] for i in codes]
    wanted = given.baselines and given.home is not None

    def read(cohort: Any, split: str, predictions: SplitPredictions, most: int) -> FollowUp:
        times = _times(predictions, day, most)
        return follow_up(cohort, split, given.vocabulary, codes, times, features=wanted)

    rows = read(given.cohort, given.split, given.judged, MOST_ROWS)
    found = _model_hazards(given.judged, table, day, len(codes))
    kept = [i for i, key in enumerate(rows.key) if key in found]
    rows = _of(rows, np.array(kept, np.int64))
    home = {
        split: read(given.home, split, predictions, FIT_ROWS)
        for split, predictions in (given.fit.items() if wanted else ())
    }
    questions = choose_questions(rows, home.get("train", rows))
    if not questions:
        return None
    minute, hazard = (np.array(part) for part in zip(*(found[k] for k in rows.key), strict=True))
    since = (rows.minute - minute) / 60
    edges = given.model.time_to_event_bins

    def model_risk(place: int, hours: float) -> Array:
        spent = time_in_bins(since + hours, edges) - time_in_bins(since, edges)
        return (hazard[:, :, place] * spent).sum(1)

    risks: dict[str, Callable[[int, float], Array]] = {MODEL: model_risk}
    if len(home.get("train", rows).key) and "train" in home:
        places = [q.place for q in questions]
        risks[TREES] = _tree_risk(home, rows, edges, places, given.seed)
        risks[COX] = _cox_risk(home, rows, places)
    metrics, cells = _measured(given, rows, questions, risks, names)
    fitted = len(home["train"].key) if TREES in risks else 0
    return _result(given, rows, metrics, cells, day, fitted)


def _times(predictions: SplitPredictions, day: bool, most: int) -> dict[int, list[int]]:
    """Return the times to look at of each subject, 0 for the end of the first day.

    Of more than `most` rows so many are taken, evenly spread.
    """
    samples = predictions.samples
    subject = samples["subject_id"].to_pylist()
    time = samples["prediction_time"].cast(pa.int64()).to_pylist()
    found: dict[int, list[int]] = {}
    for row in np.linspace(0, len(subject) - 1, min(len(subject), most)).astype(int):
        of = found.setdefault(subject[row], [])
        if not (day and of):
            of.append(0 if day else time[row])
    return found


def _model_hazards(
    predictions: SplitPredictions, table: pa.Table, day: bool, codes: int
) -> dict[tuple[int, int], tuple[float, Array]]:
    """Return (minute of the last token, hazards [K, C]) by subject and time."""
    table = table.filter(pa.array(table["day"].to_numpy() == day))
    samples = predictions.samples
    subject = samples["subject_id"].to_numpy()
    time = samples["prediction_time"].cast(pa.int64()).to_numpy()
    found: dict[tuple[int, int], tuple[float, Array]] = {}
    columns = (table[name].to_numpy() for name in ("sample", "minute"))
    for sample, minute, hazard in zip(*columns, table["hazard"].to_pylist(), strict=True):
        key = int(subject[sample]), 0 if day else int(time[sample])
        found.setdefault(key, (float(minute), np.array(hazard).reshape(-1, codes)))
    return found


def _of(rows: FollowUp, kept: NDArray[np.int64]) -> FollowUp:
    return FollowUp(
        tuple(rows.key[i] for i in kept),
        rows.minute[kept],
        rows.hours[kept],
        rows.event[kept],
        rows.features[kept],
    )


def choose_questions(rows: FollowUp, train: FollowUp) -> list[Question]:
    """Return what can be asked of rows, by code and horizon: codes chosen on train alone."""
    doubt: dict[int, dict[int, float]] = {}
    for place in range(rows.hours.shape[1]):
        for horizon in HORIZONS:
            asked = Question(place, horizon)
            both = [np.bincount(asked.answer(r)[0] + 1, minlength=3)[1:] for r in (rows, train)]
            if min(counts.min() for counts in both) >= FEWEST:
                # Of records that mostly end before, those still known are the ones with the code.
                answer, weight = asked.answer(train)
                share = weight[answer == 1].sum() / weight.sum()
                doubt.setdefault(place, {})[horizon] = share * (1 - share)
    best = sorted(doubt, key=lambda place: -max(doubt[place].values()))[:MOST_CODES]
    return [Question(place, horizon) for place in best for horizon in doubt[place]]


def _tree_risk(
    home: Mapping[str, FollowUp],
    rows: FollowUp,
    edges: tuple[float, ...],
    places: list[int],
    seed: int,
) -> Callable[[int, float], Array]:
    """Fit trees on train for each code, stopped on tuning; return their risk of the rows."""
    hazard = {}
    for place in dict.fromkeys(places):
        tuning = _fit_rows(home, "tuning", place)
        trees = fit_hazard_trees(_rows(home["train"], place), edges, tuning=tuning, seed=seed)
        hazard[place] = trees(rows.features)

    def risk(place: int, hours: float) -> Array:
        return (hazard[place] * time_in_bins(np.full(len(rows.key), hours), edges)).sum(1)

    return risk


def _cox_risk(
    home: Mapping[str, FollowUp], rows: FollowUp, places: list[int]
) -> Callable[[int, float], Array]:
    """Fit Cox on train for each code; return its risk of the rows, which is one for all times."""
    risk = {}
    for place in dict.fromkeys(places):
        cox = fit_cox(_rows(home["train"], place), tuning=_fit_rows(home, "tuning", place))
        risk[place] = cox(rows.features)
    return lambda place, _: risk[place]


def _fit_rows(home: Mapping[str, FollowUp], split: str, place: int) -> Rows | None:
    part = home.get(split)
    return _rows(part, place) if part is not None and len(part.key) else None


def _rows(part: FollowUp, place: int) -> Rows:
    return part.features, part.hours[:, place], part.event[:, place]


def _measured(
    given: SuiteInput,
    rows: FollowUp,
    questions: list[Question],
    risks: Mapping[str, Callable[[int, float], Array]],
    names: list[str],
) -> tuple[dict[str, Interval], list[tuple[str, str, dict[str, Interval]]]]:
    """Return metrics by key, and what the table has of each measure by model and their difference.

    The C-index of a code is of the risk within its longest horizon. Differences are of the same
    resamples.
    """
    last = {q.place: q.horizon for q in questions}
    asked: list[tuple[int, int, str, Question | None]]
    asked = [(q.place, q.horizon, f"auroc_{q.horizon}h", q) for q in questions]
    asked += [(place, horizon, "c_index", None) for place, horizon in last.items()]
    subject = np.array([key[0] for key in rows.key])
    metrics, cells = {}, []
    for place, horizon, measure, question in sorted(asked, key=lambda a: list(last).index(a[0])):
        functions: dict[str, Statistic] = {
            name: _auroc(question, rows, risk(place, horizon))
            if question
            else _c_index(rows, place, risk(place, horizon))
            for name, risk in risks.items()
        }
        for name in [name for name in SHORT if name in functions]:
            functions[f"less {name}"] = _difference(functions[MODEL], functions[name])
        found = bootstrap(
            functions,
            len(rows.key),
            subject=subject,
            seed=given.seed,
            num_bootstrap=given.num_bootstrap,
        )
        cells.append((names[place], measure, found))
        code = "".join(c if c.isalnum() or c in "._-" else "_" for c in names[place])
        for name, value in found.items():
            of, _, other = name.partition("less ")
            prefix = metric_prefix(of or MODEL, given.split)
            end = f"_less_{SHORT[other]}" if other else ""
            metrics[f"{prefix}/time_to_event/{code}/{measure}{end}"] = value
    return metrics, cells


def _auroc(question: Question, rows: FollowUp, risk: Array) -> Statistic:
    """Return the time-dependent AUROC as a function of row weights (Uno et al. 2007)."""
    label, weight = question.answer(rows)
    known = label >= 0
    function = statistics(label[known].astype(np.float64), risk[known])["auroc"]
    return lambda weights: function(weights[:, known] * weight[known])


def _c_index(rows: FollowUp, place: int, risk: Array) -> Statistic:
    state = np.where(rows.event[:, place], EVENT, CENSORED)
    return concordance(rows.hours[:, place], state, risk)


def _difference(one: Statistic, other: Statistic) -> Statistic:
    return lambda weights: one(weights) - other(weights)


def _written(measure: str) -> str:
    hours = measure.removeprefix("auroc_").removesuffix("h")
    return "C-index" if measure == "c_index" else f"AUROC at {hours} h"


def _result(
    given: SuiteInput,
    rows: FollowUp,
    metrics: Mapping[str, Interval],
    cells: list[tuple[str, str, dict[str, Interval]]],
    day: bool,
    fitted: int,
) -> SuiteResult:
    flat = {f"{given.split}/time_to_event/rows": float(len(rows.key))}
    for key, value in metrics.items():
        flat |= {key: value.value, f"{key}/low": value.low, f"{key}/high": value.high}
    when = "the end of the first 24 hours" if day else "the prediction times"
    columns = ["code", "measure", "this model"]
    if TREES in cells[0][2]:
        columns += ["trees", "Cox", "model less trees", "model less Cox"]
    lines: tuple[tuple[Cell, ...], ...] = tuple(
        (code, _written(measure), *found.values()) for code, measure, found in cells
    )
    caption = (
        f"{len(rows.key):,} rows at {when}, as far as their records go on: the next time of each "
        "code strictly after it, censored at the end of the record. AUROC within a horizon weighs "
        "rows by the inverse probability of censoring; the C-index is of the risk within the "
        "longest horizon. "
        f"Judged are {MOST_CODES} codes at most, those that come to about half of train in time."
    )
    if fitted:
        caption += (
            f" Fitted on {fitted:,} rows of train, by simple features: LightGBM with a "
            "piecewise-constant hazard, and Cox regression with a ridge penalty chosen on tuning."
        )
    number = len({c for c, _, _ in cells})
    told = f"times to events: {number} code{'s' * (number > 1)} judged at {when}"
    section = Table(tuple(columns), lines, caption)
    return SuiteResult(metrics=flat, sections={HEADING: section}, lines=(told,))
