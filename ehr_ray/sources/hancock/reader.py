"""HANCOCK, head-and-neck cancer: the published feature tables and tile features of tissue cores.

A folder with `targets.csv`, `clinical.csv`, `pathological.csv`, `blood.csv`, `icd_codes.csv`,
`tma_cell_density.csv` and `tma_tile_dtr_256_<marker>.npz`; the first two are needed. Minute 0 is
the diagnosis, where predictions stand; findings of the operation are taken as known then. Outcomes
are events at their days, those of day 0 at minute 1: RECURRENCE, MEDS_DEATH, and FOLLOW_UP//END,
the last information.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.leakage import require_no_leak
from ehr_ray.events.options import RECURRENCE_2Y, SURVIVAL_5Y, Outcome
from ehr_ray.events.outcomes import (
    CENSORED,
    COMPETING,
    EVENT,
    UNKNOWN,
    labels_at,
)
from ehr_ray.sources.hancock.tiles import TILES, read_tiles
from ehr_ray.sources.parsing.cells import BLANK, events_table, since_epoch
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.labels import label_rows
from ehr_ray.sources.parsing.quantities import numbers
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.source import Chunk, Source, Unit

TABLES: Final = {
    "clinical.csv": "CLINICAL",
    "pathological.csv": "PATHOLOGY",
    "blood.csv": "BLOOD",
    "icd_codes.csv": "ICD",
    "tma_cell_density.csv": "TMA//DENSITY",
}
"""Table to the prefix of its codes."""
TARGETS: Final = "targets.csv"
CAUSE: Final = "survival_status_with_cause"
NOMINAL: Final = frozenset(
    {
        "sex",
        "smoking_status",
        "primary_tumor_site",
        "histologic_type",
        "hpv_association_p16",
        "resection_status",
        "resection_status_carcinoma_in_situ",
    }
)
"""Columns whose numbers name categories: each category becomes a code of its own."""
DENIED: Final = (
    r"recurrence.*|days_to_.*|rfs_.*|survival_.*|progress.*|metastasis_\d.*|adjuvant_.*"
    r"|.*follow_?up.*|year_.*|.*_year|first_treatment_.*|.*last_information.*"
)
"""Columns written after the diagnosis, or that tell when it was: they are never features."""
DAY: Final = 1440.0


@dataclass(frozen=True)
class HancockOptions:
    """Options of the source."""

    death_cause: Literal["any", "tumor"] = field(
        default="any",
        metadata={"help": "deaths that count against survival; others compete with them"},
    )
    competing_death: Literal["negative", "unknown"] = field(
        default="negative",
        metadata={"help": "a patient who died before the horizon without the event"},
    )


def outcomes_of(options: HancockOptions) -> tuple[Outcome, Outcome]:
    """Return 5-year survival and 2-year recurrence as the options define them."""
    return tuple(  # type: ignore[return-value]
        replace(outcome, competing_death=options.competing_death)
        for outcome in (SURVIVAL_5Y, RECURRENCE_2Y)
    )


def units(path: Path, options: HancockOptions) -> list[Unit]:  # noqa: ARG001
    """Return the one unit of work: the tables belong together, and are small."""
    if not path.is_dir():
        raise InputError(f"--input {path}: no such folder; give that of the HANCOCK tables")
    missing = [name for name in (TARGETS, "clinical.csv") if not (path / name).is_file()]
    if missing:
        raise InputError(f"--input {path}: no {missing[0]}; give the folder of the HANCOCK tables")
    there = sorted(os.listdir(path))
    files = [name for name in there if name in TABLES or name == TARGETS or TILES.fullmatch(name)]
    return [Unit(str(path), tuple(files))]


def read(unit: Unit, options: HancockOptions) -> Iterator[Chunk]:
    """Yield the tables, then the tiles of each marker; raises InputError where a column leaks."""
    rejects = Rejects()
    root = Path(unit.root)
    targets = _table(root / TARGETS)
    ids, names = _identified(targets, TARGETS)
    followed = _followed(targets, ids, options, rejects)
    known = set(ids.tolist())
    rows = len(ids)
    events = [_outcome_events(followed)]
    for name, prefix in TABLES.items():
        if name not in unit.files:
            continue
        table = _table(root / name)
        who, more = _identified(table, name)
        rows += len(who)
        names = pa.concat_tables([names, more])
        columns = {c: table[c] for c in table if c != "patient_id" and not denied(c)}
        _refuse_leaks(columns, who, followed, name, options)
        strangers = np.array([one not in known for one in who.tolist()], bool)
        for row in np.flatnonzero(strangers):
            rejects.row(name, int(row) + 2, "no row in targets")
        kept = ~strangers
        for column, cells in columns.items():
            events.append(_column_events(prefix, column, who[kept], _kept(cells, kept)))
    if not len(ids):
        raise InputError(f"{root / TARGETS}: no patient")
    yield Chunk(
        events=pa.concat_tables(events),
        labels=_labels(followed, options),
        rejects=rejects.table(),
        rows_read=rows,
        files_read=sum(name in TABLES or name == TARGETS for name in unit.files),
        names=names.group_by(["subject_id", "name"], use_threads=False).aggregate([]),
    )
    for name in unit.files:
        if TILES.fullmatch(name):
            yield read_tiles(root / name, known)


def denied(column: str) -> bool:
    """Whether a column is written after the diagnosis, so that it may not be a feature."""
    return re.fullmatch(DENIED, column.strip().lower()) is not None


@dataclass(frozen=True, eq=False)
class _Followed:
    """Of each patient, in order of `ids`: days until, and state, of each outcome; and events."""

    ids: npt.NDArray[np.int64]
    days: Mapping[str, npt.NDArray[np.float64]]
    states: Mapping[str, npt.NDArray[np.int8]]
    events: list[tuple[int, float, str]]

    def label(self, outcome: Outcome) -> npt.NDArray[np.int8]:
        return labels_at(self.days[outcome.name], self.states[outcome.name], outcome)


def _followed(
    table: Mapping[str, list[str]],
    ids: npt.NDArray[np.int64],
    options: HancockOptions,
    rejects: Rejects,
) -> _Followed:
    needed = ("recurrence", "days_to_recurrence", "survival_status", "days_to_last_information")
    for name in needed:
        if name not in table:
            raise InputError(f"{TARGETS}: no column {name}")
    if options.death_cause == "tumor" and CAUSE not in table:
        raise InputError(f"{TARGETS}: no column {CAUSE}, which --death-cause tumor reads")
    last, first = (_numbers(table[n]) for n in ("days_to_last_information", "days_to_recurrence"))
    dead = _answers(table, "survival_status", "deceased", "living")
    cause = table.get(CAUSE, [""] * len(ids))
    counts = np.array([_counts(cell, options) for cell in cause])
    recurred = _answers(table, "recurrence", "yes", "no")
    bad = ~(last >= 0) | (recurred & ~(first >= 0))
    rejects.rows(bad, lambda i: (TARGETS, int(i) + 2), lambda _: "no day of outcome")
    events: list[tuple[int, float, str]] = []
    for i in np.flatnonzero(~bad):
        if recurred[i]:
            events.append((ids[i], first[i], "RECURRENCE"))
        if dead[i]:
            code = "MEDS_DEATH" if counts[i] else "DEATH//OTHER_CAUSE"
            events.append((ids[i], last[i], code))
        events.append((ids[i], last[i], "FOLLOW_UP//END"))
    died = np.where(dead, np.where(counts, EVENT, COMPETING), CENSORED)
    again = np.where(recurred, EVENT, np.where(dead, COMPETING, CENSORED))
    days = {"survival_5y": last, "recurrence_2y": np.where(recurred, first, last)}
    return _Followed(
        ids,
        {name: np.where(bad, np.nan, value) for name, value in days.items()},
        {"survival_5y": died.astype(np.int8), "recurrence_2y": again.astype(np.int8)},
        events,
    )


def _answers(
    table: Mapping[str, list[str]], column: str, yes: str, no: str
) -> npt.NDArray[np.bool_]:
    """Return which cells say `yes`; raises InputError where one says neither: it is no `no`."""
    found = [cell.strip().lower() for cell in table[column]]
    for row, cell in enumerate(found, start=2):
        if cell not in (yes, no):
            raise InputError(
                f"{TARGETS}: row {row}: {column} {cell!r} is neither {yes} nor {no}; write it as "
                "one of them, or remove the row"
            )
    return np.array([cell == yes for cell in found], bool)


def _counts(cause: str, options: HancockOptions) -> bool:
    """Whether a death of this cause counts: `not tumor specific` is another cause, not a tumour."""
    words = cause.strip().lower()
    return options.death_cause == "any" or ("tumor" in words and "not tumor" not in words)


def _outcome_events(followed: _Followed) -> pa.Table:
    ids, days, codes = zip(*followed.events, strict=True) if followed.events else ((), (), ())
    # An outcome of the day of diagnosis comes after the prediction, which stands at minute 0:
    # without this it would be an input of what it is the answer to.
    minutes = np.maximum(np.array(days, np.float64) * DAY, 1.0)
    times, _ = since_epoch(minutes, 1.0)
    nothing = np.full(len(ids), np.nan)
    return events_table(np.array(ids, np.int64), times, pa.array(codes, pa.string()), nothing)


def _labels(followed: _Followed, options: HancockOptions) -> dict[str, pa.Table]:
    labels = {}
    for outcome in outcomes_of(options):
        label = followed.label(outcome)
        known = label != UNKNOWN
        labels[outcome.name] = label_rows(followed.ids[known], label[known] == 1, 0.0)
    return labels


def _refuse_leaks(
    columns: Mapping[str, list[str]],
    who: npt.NDArray[np.int64],
    followed: _Followed,
    name: str,
    options: HancockOptions,
) -> None:
    if not columns:
        return
    values = np.stack([_numbers(cells, text=True) for cells in columns.values()], 1)
    place = {one: i for i, one in enumerate(followed.ids.tolist())}
    at = np.array([place.get(one, -1) for one in who.tolist()], np.int64)
    answers = {outcome.name: followed.label(outcome) for outcome in outcomes_of(options)}
    # A copy of the flag itself tells less of a horizon, where late events count as none.
    answers |= {
        f"{task} at any time": np.where(state == CENSORED, 0, np.where(state == EVENT, 1, UNKNOWN))
        for task, state in followed.states.items()
    }
    for task, answer in answers.items():
        label = np.where(at >= 0, answer[at], UNKNOWN)
        require_no_leak(values, [f"{name}: {c}" for c in columns], label, task)


def _column_events(
    prefix: str, column: str, who: npt.NDArray[np.int64], cells: list[str]
) -> pa.Table:
    """Return a column's events: a value, or for a category, a flag or a text, a code alone.

    Blood counts stand at minute 0; all else is static.
    """
    values = _numbers(cells)
    there = np.array([cell.strip().lower() not in BLANK for cell in cells])
    if prefix == "ICD":
        kept = there & (values > 0)
        codes = pa.array([f"ICD//{column.upper()}"] * int(kept.sum()), pa.string())
        values = np.full(len(values), np.nan)
    elif column in NOMINAL or np.isinf(values).any():
        kept = there
        named = [_category(cell) for cell, keep in zip(cells, kept, strict=True) if keep]
        codes = pa.array([f"{prefix}//{column}//{one}" for one in named], pa.string())
        values = np.full(len(values), np.nan)
    else:
        kept = there & np.isfinite(values)
        codes = pa.array([f"{prefix}//{column}"] * int(kept.sum()), pa.string())
    minute = 0.0 if prefix == "BLOOD" else np.nan
    times, _ = since_epoch(np.full(int(kept.sum()), minute), 1.0)
    return events_table(who[kept], times, codes, values[kept])


def _category(cell: str) -> str:
    """Return a category's name: 2 and 2.0 are one."""
    return cell.strip().removesuffix(".0")


def _table(path: Path) -> dict[str, list[str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from None
    header = [name.strip() for name in rows[0]] if rows else []
    if "patient_id" not in header:
        raise InputError(f"{path}: no column patient_id")
    if len(set(header)) < len(header):
        raise InputError(f"{path}: two columns of one name")
    body = [row for row in rows[1:] if any(row)]
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise InputError(f"{path}: row {number} has {len(row)} cells, not {len(header)}")
    return {name: [row[i] for row in body] for i, name in enumerate(header)}


def _identified(
    table: Mapping[str, list[str]], name: str
) -> tuple[npt.NDArray[np.int64], pa.Table]:
    ids, blank, names = subject_ids(pa.array(table["patient_id"], pa.string()))
    if blank.any():
        raise InputError(f"{name}: row {int(np.argmax(blank)) + 2} has no patient_id")
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        rows = np.flatnonzero(ids == unique[counts > 1][0])[:2] + 2
        raise InputError(f"{name}: rows {rows[0]} and {rows[1]} are of one patient; keep one")
    return ids, names


def _numbers(cells: list[str], *, text: bool = False) -> npt.NDArray[np.float64]:
    """Return numbers: NaN for a blank cell, infinity for text, or with `text` the text's rank."""
    values, bad = numbers(pa.array(cells, pa.string()))
    values[bad] = np.inf
    if text and np.isinf(values).any():
        _, rank = np.unique(np.array(cells, str), return_inverse=True)
        values = np.where(np.isnan(values), np.nan, rank.astype(np.float64))
    return values


def _kept(cells: list[Any], mask: npt.NDArray[np.bool_]) -> list[Any]:
    return [cell for cell, keep in zip(cells, mask, strict=True) if keep]


DESCRIPTIONS: Final = {
    "MEDS_DEATH": "Death",
    "DEATH//OTHER_CAUSE": "Death of a cause that does not count",
    "RECURRENCE": "Recurrence of the tumour",
    "FOLLOW_UP//END": "Last information on the patient",
}


def _positive(options: HancockOptions) -> dict[str, str]:
    """Return what the positive class of each task is, and which deaths count as what."""
    cause = {"any": "those of any cause count", "tumor": "only those by a tumour count"}[
        options.death_cause
    ]
    return {
        outcome.name: f"{outcome.describes}; of deaths {cause}" for outcome in outcomes_of(options)
    }


SOURCE: Final = Source(
    name="hancock",
    description="HANCOCK: feature tables and tile features of head-and-neck cancer patients",
    options=HancockOptions,
    units=units,
    read=read,
    descriptions=DESCRIPTIONS,
    positive=_positive,
)
