"""Persons, visits and deaths, whole in memory: who was where when, and who died.

No other table is ever held. Of a visit that has no end, or one before its start, the end is not
known.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.omop.tables import DEATH, DIED, INPATIENT, KEY, PERSON, SEX, VISIT, VISITS
from ehr_ray.sources.parsing.admissions import Admissions, Ids, Rows
from ehr_ray.sources.parsing.blocks import Block, joined, read_whole
from ehr_ray.sources.parsing.cells import Mask, Times, events_table
from ehr_ray.sources.parsing.databases import table_path
from ehr_ray.sources.parsing.kinds import UNKNOWN
from ehr_ray.sources.parsing.tables import Table

NAT = np.datetime64("NaT", "us")
LAST_SECOND = np.timedelta64(86_399, "s")
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Persons:
    """All persons, in order of id; P rows.

    Args:
        rows: columns of `person`, [P] each.
        visits: columns of `visit_occurrence` in order of their ids, [V] each.
        start: of each visit, [V].
        end: of each visit, NaT where not known, [V].
        inpatient: whether a visit was in a hospital, [V].
        death: when each person died, NaT where not known, [P].
        table: where persons are listed.
    """

    rows: Columns
    visits: Columns
    start: Times
    end: Times
    inpatient: Mask
    death: Times
    table: str = PERSON.name

    def look_up(self, ids: Ids) -> tuple[Mask, Mask]:
        """Return (whether each person is known) twice: all are kept."""
        known = self.rows[KEY][self.row_of(ids)] == ids
        return known, known

    def row_of(self, ids: Ids) -> Rows:
        """Return the row of each person; those that are not there have any."""
        return np.minimum(np.searchsorted(self.rows[KEY], ids), len(self.rows[KEY]) - 1)

    def visit_of(self, person: Ids, visit: Ids) -> tuple[Rows, Mask]:
        """Return (row of each visit, whether it is there and that person's)."""
        there = self.visits[VISIT]
        if not len(there):
            return np.zeros(len(visit), np.intp), np.zeros(len(visit), bool)
        row = np.minimum(np.searchsorted(there, visit), len(there) - 1)
        return row, (there[row] == visit) & (self.visits[KEY][row] == person)

    @cached_property
    def admissions(self) -> Admissions:
        """The inpatient visits; of one in which a person died the death is known."""
        at = self.inpatient
        person = self.visits[KEY][at]
        start, end = self.start[at], self.end[at]
        death = self.death[self.row_of(person)]
        said = _discharged_dead(self.visits)[at]
        inside = (death >= start) & (death <= end)
        when = np.where(inside, death, np.where(said, end, NAT))  # NaT where the end is
        return Admissions.of(person, self.visits[VISIT][at], start, end, said | inside, when)


def day_end(times: Times) -> Times:
    """Return the last second of each time's day."""
    start: Times = times.astype("datetime64[D]").astype("datetime64[us]")
    last: Times = np.add(start, LAST_SECOND)
    return last


def exact(time: Times) -> Mask:
    """Whether a row tells a time of day: a time that is not the midnight that dates become."""
    return ~np.isnat(time) & (time != time.astype("datetime64[D]"))


def load(root: str, person: str, visits: str | None, death: str | None, state: str = "") -> Persons:
    """Read the tables; kept for the next unit of this process until a file changes.

    `state` tells a database from a changed one.
    """
    names = [name for name in (person, visits, death) if name is not None]
    stats = [] if state else [os.stat(os.path.join(root, name)) for name in names]
    stamp = (state, *((stat.st_size, stat.st_mtime_ns) for stat in stats))
    return _loaded(root, person, visits, death, stamp)


@lru_cache(maxsize=1)
def _loaded(
    root: str,
    person: str,
    visits: str | None,
    death: str | None,
    stamp: tuple[Any, ...],  # noqa: ARG001
) -> Persons:
    rows = read_persons(root, person)[0]
    columns = _columns(root, visits, VISITS)
    order = np.argsort(columns[VISIT], kind="stable")
    columns = {key: values[order] for key, values in columns.items()}
    start = _times(columns, "visit_start", columns["visit_start_date"])
    last = columns["visit_end_date"]
    last = np.where(np.isnat(last), columns["visit_end_datetime"], last)
    end = _times(columns, "visit_end", day_end(last))
    end = np.where(end < start, NAT, end)
    inpatient = np.isin(columns["visit_concept_id"].astype(str), INPATIENT)
    found = Persons(rows, columns, start, end, inpatient, np.full(len(rows[KEY]), NAT))
    return replace(found, death=_deaths(found, _columns(root, death, DEATH)))


def read_persons(root: str, name: str) -> tuple[Columns, list[Block]]:
    """Return (columns of `person` in order of id, the blocks, with what was refused)."""
    kinds = _kinds(PERSON)
    blocks = read_whole(root, name, PERSON, kinds)
    seen: set[int] = set()
    for block in blocks:
        block.refuse(_repeats(block.columns[KEY], seen), lambda _: f"{KEY} again")
    columns = joined(blocks, kinds)
    if not len(columns[KEY]):
        path = table_path(root, name)
        raise InputError(f"{path}: no person in it; give the table of all persons")
    order = np.argsort(columns[KEY], kind="stable")
    return {key: values[order] for key, values in columns.items()}, blocks


def person_events(persons: Persons) -> pa.Table:
    """Return the `EVENTS` of all persons: static sex, race, ethnicity and site, birth and death."""
    rows, ids = persons.rows, persons.rows[KEY]
    never = np.full(len(ids), NAT)
    sex = [f"GENDER//{SEX.get(text, text)}" for text in rows["gender_concept_id"]]
    pieces = [_events(ids, never, sex)]
    for prefix, column in (
        ("RACE", "race_concept_id"),
        ("ETHNICITY", "ethnicity_concept_id"),
        ("CARE_SITE", "care_site_id"),
    ):
        told = ~np.isin(rows[column].astype(str), (UNKNOWN, "0"))
        codes = [f"{prefix}//{text}" for text in rows[column][told]]
        pieces.append(_events(ids[told], never[told], codes))
    born = _births(rows)
    for code, times in (("MEDS_BIRTH", born), ("MEDS_DEATH", persons.death)):
        there = ~np.isnat(times)
        pieces.append(_events(ids[there], times[there], [code] * int(there.sum())))
    return pa.concat_tables(pieces)


def visit_events(persons: Persons) -> pa.Table:
    """Return the `EVENTS` of all visits: admissions and discharges of those in a hospital.

    One of which the end is not known has none.
    """
    columns = persons.visits
    known, _ = persons.look_up(columns[KEY])
    concept = columns["visit_concept_id"]
    left = np.where(
        columns["discharged_to_concept_id"] == UNKNOWN,
        columns["discharge_to_concept_id"],
        columns["discharged_to_concept_id"],
    )
    there = persons.inpatient
    begin = np.where(there, "HOSPITAL_ADMISSION//", "VISIT_START//").astype(object) + concept
    end = np.where(there, "HOSPITAL_DISCHARGE//", "VISIT_END//").astype(object)
    end += np.where(there, left, concept)
    ids, over = columns[KEY], known & ~np.isnat(persons.end)
    return pa.concat_tables(
        [
            _events(ids[known], persons.start[known], begin[known].tolist()),
            _events(ids[over], persons.end[over], end[over].tolist()),
        ]
    )


def open_visits(persons: Persons) -> int:
    """Return how many visits of persons that are listed have no known end."""
    known, _ = persons.look_up(persons.visits[KEY])
    return int(np.count_nonzero(known & np.isnat(persons.end)))


def _columns(root: str, name: str | None, table: Table) -> Columns:
    kinds = _kinds(table)
    return joined([] if name is None else read_whole(root, name, table, kinds), kinds)


def _kinds(table: Table) -> dict[str, Any]:
    types = {"whole": np.int64, "concept": object, "text": object, "time": "datetime64[us]"}
    return {table.key: np.int64, **{name: types[table.kind(name)[0]] for name in table.columns}}


def _times(columns: Columns, name: str, otherwise: Times) -> Times:
    """Return the times of `<name>_datetime` where they tell a time of day."""
    time = columns[f"{name}_datetime"]
    return np.where(exact(time), time, otherwise)


def _births(rows: Columns) -> Times:
    """Return when persons were born, else the first of the month or the year."""
    year, month, day = (rows[f"{part}_of_birth"] for part in ("year", "month", "day"))
    start = (year - 1970).astype("datetime64[Y]").astype("datetime64[M]")
    start = (start + np.clip(month - 1, 0, 11)).astype("datetime64[D]")
    born = (start + np.clip(day - 1, 0, 30)).astype("datetime64[us]")
    born = np.where(year > 0, born, NAT)
    return np.where(np.isnat(rows["birth_datetime"]), born, rows["birth_datetime"])


def _deaths(persons: Persons, deaths: Columns) -> Times:
    """Return when each person died.

    A date alone is its end, or the end of an inpatient visit on that day: too late hides nothing
    from a model, too early would tell it.
    """
    known, _ = persons.look_up(deaths[KEY])
    date = np.where(np.isnat(deaths["death_date"]), deaths["death_datetime"], deaths["death_date"])
    time = deaths["death_datetime"]
    told = exact(time)
    when = np.full(len(persons.rows[KEY]), NAT)
    row = persons.row_of(deaths[KEY])
    np.fmin.at(when, row[known], np.where(told, time, day_end(date))[known])
    loose = np.zeros(len(when), bool)
    loose[row[known & ~told]] = True
    at, there = persons.row_of(persons.visits[KEY]), persons.inpatient
    same = when[at].astype("datetime64[D]") == persons.end.astype("datetime64[D]")
    ends = np.full(len(when), NAT)
    chosen = same & there & loose[at]
    np.fmax.at(ends, at[chosen], persons.end[chosen])
    return np.where(np.isnat(ends), when, ends)


def _discharged_dead(visits: Columns) -> Mask:
    dead: Mask = (visits["discharged_to_concept_id"] == DIED) | (
        visits["discharge_to_concept_id"] == DIED
    )
    return dead


def _repeats(ids: Ids, seen: set[int]) -> Mask:
    bad = np.zeros(len(ids), bool)
    for i, person in enumerate(ids.tolist()):
        bad[i] = person in seen
        seen.add(person)
    return bad


def _events(ids: Ids, times: Times, codes: Sequence[str]) -> pa.Table:
    return events_table(ids, times, pa.array(codes, pa.string()), np.full(len(ids), np.nan))
