"""The table of stays, whole in memory: who was in which unit when, on one line of time a patient.

eICU tells no dates: a stay has clock times, the year of discharge, and minutes relative to its own
unit admission. Dates are made up from these, so that one patient's stays follow each other:

- Unit stays of one hospital stay are placed exactly, by their minutes from the hospital admission.
- Hospital stays of a patient are ordered by year of discharge, age and number of the stay. eICU
  says no more of their order within a year.
- A hospital stay begins on 1 January of its year of discharge at its clock time or, where that is
  not after the one before, on the first day after it. So the days between two hospital stays mean
  nothing, and the minutes within one are true.
- An event lies outside its hospital stay only where no other stay is on that side: else it would
  stand among another's events.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.eicu.tables import PATIENT, STAY
from ehr_ray.sources.parsing.blocks import Block, joined, read_whole
from ehr_ray.sources.parsing.cells import Floats, Mask, Times
from ehr_ray.sources.parsing.identifiers import subject_ids

Ids = npt.NDArray[np.int64]
NAT: Final = np.datetime64("NaT", "us")
DAY: Final = np.timedelta64(1, "D")
MAX_MINUTES: Final = 100 * 366 * 1440
"""An offset of more than a century is mistyped."""
OLDEST: Final = 90.0
"""Stands for `> 89`."""

NO_HOSPITAL: Final = -1
"""Stands for a blank `hospitalid`."""

_COLUMNS: Final[dict[str, Any]] = {
    STAY: np.int64,
    **{
        name: {"whole": np.int64, "text": object}.get(PATIENT.kind(name)[0], np.float64)
        for name in PATIENT.columns
    },
}


@dataclass(frozen=True, eq=False)
class Stays:
    """Unit stays in the order of their ids, S rows.

    Args:
        rows: the columns of the table, [S] each; `hospitalid` is int64.
        subject: ids of the patients, [S].
        unit_start: unit admission, [S].
        unit_end: unit discharge, NaT where it is told before the admission, [S].
        hospital_start: hospital admission, [S].
        hospital_end: hospital discharge, likewise, [S].
        earliest: when events of the stay may begin, NaT for no bound, [S].
        latest: when they may end, NaT for no bound, [S].
        age: in years, NaN where not known, [S].
        order: rows by patient and time, [S].
        names: the ids' spellings.
        table: where stays are listed.
    """

    rows: dict[str, npt.NDArray[Any]]
    subject: Ids
    unit_start: Times
    unit_end: Times
    hospital_start: Times
    hospital_end: Times
    earliest: Times
    latest: Times
    age: Floats
    order: npt.NDArray[np.intp]
    names: pa.Table
    table: str = PATIENT.name

    def row_of(self, stays: Ids) -> npt.NDArray[np.intp]:
        """Return the row of each stay; those that are not there have any."""
        found = np.searchsorted(self.rows[STAY], stays)
        return np.minimum(found, max(len(self.subject) - 1, 0))

    def look_up(self, ids: Ids) -> tuple[Mask, Mask]:
        """Return (whether each stay is known) twice: all are kept."""
        if not len(self.subject):
            return np.zeros(len(ids), bool), np.zeros(len(ids), bool)
        known = self.rows[STAY][self.row_of(ids)] == ids
        return known, known

    def place(self, row: npt.NDArray[np.intp], minutes: Floats) -> Times:
        """Return when `minutes` after the unit admission of stays was; NaN is NaT."""
        times = self.unit_start[row] + as_time(minutes)
        times = np.fmax(times, np.where(np.isnat(times), times, self.earliest[row]))
        late = times > self.latest[row]
        return np.where(late, self.latest[row], times)

    def died(self) -> tuple[Mask, Mask]:
        """Return (whether each patient died in the hospital, whether that is known), [S]."""
        unit = self.rows["unitdischargestatus"] == "Expired"
        hospital = self.rows["hospitaldischargestatus"]
        return unit | (hospital == "Expired"), unit | np.isin(hospital, ("Alive", "Expired"))

    def open_visits(self) -> int:
        """Return how many unit stays have no known end, of their own or of the hospital stay."""
        return int(np.count_nonzero(np.isnat(self.unit_end) | np.isnat(self.hospital_end)))

    def first_of(self, key: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """Return the first row in time of each value of a key of rows, [S]."""
        _, first = np.unique(key[self.order], return_index=True)
        return np.sort(self.order[first])


def as_time(minutes: Floats) -> npt.NDArray[np.timedelta64]:
    """Return minutes as a duration; NaN is NaT."""
    blank = np.isnan(minutes)
    micros = np.rint(np.where(blank, 0, minutes) * 60e6).astype("timedelta64[us]")
    return np.where(blank, np.timedelta64("NaT"), micros)


def load(root: str, name: str) -> tuple[Stays, list[Block]]:
    """Return (the stays, the blocks they were read in, with what was refused).

    A stay given twice is refused the second time, and so is one without times.
    """
    blocks = read_whole(root, name, PATIENT, _COLUMNS)
    seen: set[int] = set()
    for block in blocks:
        block.refuse(_repeats(block.columns[STAY], seen), lambda _: f"{STAY} again")
        for column in ("hospitaladmitoffset", "hospitaldischargeoffset", "unitdischargeoffset"):
            far = np.abs(block.columns[column]) > MAX_MINUTES
            block.refuse(far, partial(_too_far, column))
        hospital = block.columns["hospitalid"]
        broken = ~np.isnan(hospital) & (hospital != np.rint(hospital))
        block.refuse(broken, lambda _: "hospitalid is not a whole number")
        year = block.columns["hospitaldischargeyear"]
        block.refuse(
            (year < 1900) | (year > 2200), lambda _: "hospitaldischargeyear is no year of our time"
        )
    columns = joined(blocks, _COLUMNS)
    if not len(columns[STAY]):
        raise InputError(f"{root}/{name}: no stay in it; give the table of all stays")
    hospital = np.nan_to_num(columns["hospitalid"], nan=NO_HOSPITAL)
    columns["hospitalid"] = hospital.astype(np.int64)
    order = np.argsort(columns[STAY], kind="stable")
    return _placed({key: values[order] for key, values in columns.items()}), blocks


def _too_far(column: str, _: int) -> str:
    return f"{column} is more than a century"


def _repeats(ids: Ids, seen: set[int]) -> Mask:
    bad = np.zeros(len(ids), bool)
    for i, stay in enumerate(ids.tolist()):
        bad[i] = stay in seen
        seen.add(stay)
    return bad


def _placed(rows: dict[str, npt.NDArray[Any]]) -> Stays:
    """Return stays with times of their own."""
    subject, _, names = subject_ids(pa.array(rows["uniquepid"], pa.string()))
    age = np.array([_age(text) for text in rows["age"]], np.float64)
    admitted = rows["hospitaladmitoffset"]
    # Minutes from the hospital admission.
    unit = -admitted
    begin = np.minimum(unit, 0.0)
    end = np.maximum(unit + rows["unitdischargeoffset"], unit + rows["hospitaldischargeoffset"])
    size = len(subject)
    start = np.empty(size, "datetime64[us]")
    earliest, latest = (np.full(size, np.datetime64("NaT"), "datetime64[us]") for _ in range(2))
    hospital_end = np.empty(size, "datetime64[us]")
    before: tuple[int, npt.NDArray[Any], np.datetime64] | None = None
    for patient, stays in _hospital_stays(rows, subject, age):
        first, last = as_time(np.array([begin[stays].min(), max(end[stays].max(), 0.0)]))
        day = np.datetime64(f"{rows['hospitaldischargeyear'][stays[0]]:04d}-01-01", "us")
        clock = _clock(rows["hospitaladmittime24"][stays[0]])
        follows = before is not None and before[0] == patient
        if follows and before is not None:
            free = (before[2] - first).astype("datetime64[D]") + DAY
            day = max(day, free.astype("datetime64[us]"))
            latest[before[1]] = before[2]
        start[stays] = day + clock
        if follows:
            earliest[stays] = day + clock + first
        discharge = as_time((unit + rows["hospitaldischargeoffset"])[stays].max(keepdims=True))
        hospital_end[stays] = np.where(discharge < first, NAT, day + clock + discharge)
        before = patient, stays, day + clock + last
    unit_start: Times = np.add(start, as_time(unit))
    unit_end: Times = np.add(unit_start, as_time(rows["unitdischargeoffset"]))
    unit_end[unit_end < unit_start] = NAT
    visit = np.nan_to_num(rows["unitvisitnumber"])
    order = np.lexsort((rows[STAY], visit, unit_start, subject))
    return Stays(
        rows,
        subject,
        unit_start,
        unit_end,
        start,
        hospital_end,
        earliest,
        latest,
        age,
        order,
        names,
    )


def _hospital_stays(
    rows: dict[str, npt.NDArray[Any]], subject: Ids, age: Floats
) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
    """Yield (patient, rows) of each hospital stay, in order of patient and time."""
    number = rows["patienthealthsystemstayid"]
    keys = (rows[STAY], number, age, rows["hospitaldischargeyear"], subject)
    # One hospital stay has one year and one age, whatever its rows say.
    _, group = np.unique(np.stack([subject, number]), axis=1, return_inverse=True)
    group = group.reshape(-1)
    order = np.lexsort(keys)
    _, first = np.unique(group[order], return_index=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    by_group = np.argsort(rank[group], kind="stable")
    cuts = np.flatnonzero(np.diff(rank[group][by_group])) + 1
    for stays in np.split(by_group, cuts):
        yield int(subject[stays[0]]), stays


def _age(text: str) -> float:
    try:
        return OLDEST if text.startswith(">") else float(text)
    except ValueError:
        return np.nan


def _clock(text: str) -> np.timedelta64:
    """Return the time of day of `HH:MM:SS`; midnight where it says none."""
    try:
        hours, minutes, seconds = (int(part) for part in text.split(":"))
    except ValueError:
        return np.timedelta64(0, "us")
    return np.timedelta64((hours * 3600 + minutes * 60 + seconds) * 1_000_000, "us")
