"""Hospital admissions, and what can be asked of them: death, a long stay, readmission.

Each label is made at a moment when its answer is not yet known. `mortality` and
`length_of_stay_7d`: some hours after a start, for patients who are then alive and in hospital,
about that admission; one inside another is part of it. `readmission_30d`: at every discharge of a
patient who is then alive and in no other admission; true if another begins within 30 days. A
patient who dies at home within these days, and the last admission of the record, count as false.
Of an admission of which nobody knows the end nothing is asked; it may be the readmission.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.sources.parsing.cells import Mask, Times
from ehr_ray.sources.parsing.labels import LONG_STAY_HOURS, label_rows

Ids = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]
READMISSION: Final = np.timedelta64(30, "D")
STAY: Final = "length_of_stay"
"""The task of days, and what `--tasks` calls it; that of classes is `length_of_stay_class`."""
STAY_CLASSES: Final = ("<3", "3-7", ">7")
"""Days; the last class is what `length_of_stay_7d` is true of."""
LONG_STAY: Final = np.timedelta64(round(LONG_STAY_HOURS * 3600), "s")


@dataclass(frozen=True, eq=False)
class Admissions:
    """Hospital admissions, by subject, start, length and id; A rows.

    Of two that start together the longer is first.

    Args:
        subject: subject ids, [A].
        hadm: admission ids, [A].
        start: when each began, [A].
        end: when it ended, never before its start, which stands for an end not known, [A].
        ended: whether the end is known, [A].
        died: whether the patient died in it, or in another inside it, [A].
        death: when, NaT for the others, [A].
    """

    subject: Ids
    hadm: Ids
    start: Times
    end: Times
    ended: Mask
    died: Mask
    death: Times

    @classmethod
    def of(
        cls, subject: Ids, hadm: Ids, start: Times, end: Times, died: Mask, death: Times
    ) -> "Admissions":
        """Return admissions in their order, of columns in any.

        An end that is NaT, or before the start, is not known. A death in an admission that lies
        inside another is one in both.
        """
        ended, last = end >= start, np.fmax(start, end)
        order = np.lexsort((hadm, -last.astype(np.int64), start, subject))
        made = cls(
            *(subject[order], hadm[order], start[order], last[order]),
            *(ended[order], died[order], death[order]),
        )
        np.logical_or.at(made.died, made.outer, made.died.copy())
        np.fmin.at(made.death, made.outer, made.death.copy())
        return made

    def find(self, subject: Ids, hadm: Ids) -> tuple[Rows, Mask]:
        """Return (row of each admission, whether it is there and that subject's)."""
        if not len(self.hadm):
            return np.zeros(len(hadm), np.intp), np.zeros(len(hadm), bool)
        at = np.searchsorted(self.hadm, hadm, sorter=self._by_hadm)
        row = self._by_hadm[np.minimum(at, len(self.hadm) - 1)]
        return row, (self.hadm[row] == hadm) & (self.subject[row] == subject)

    @cached_property
    def outer(self) -> Rows:
        """Row of the admission that each one lies in, itself where it is in no other, [A]."""
        _, subject = np.unique(self.subject, return_inverse=True)
        times, rank = np.unique(self.end, return_inverse=True)
        end = subject * len(times) + rank
        latest = np.maximum.accumulate(end)
        longest = np.append(True, end[1:] > latest[:-1])[: len(end)]
        return np.maximum.accumulate(np.where(longest, np.arange(len(end)), 0))

    @cached_property
    def _by_hadm(self) -> Rows:
        return np.argsort(self.hadm, kind="stable")

    def first(self) -> Rows:
        """Return the row of each subject's first admission."""
        return np.unique(self.subject, return_index=True)[1]


def still_there(
    found: Admissions, row: Rows, start: Times, hours: float
) -> tuple[Rows, Times, Times]:
    """Return (row, start, time) of those alive and in hospital at `time`, `hours` after the start.

    A row is that of the whole admission, where the one given lies inside it.
    """
    row = found.outer[row]
    time = start + np.timedelta64(round(hours * 3600e6), "us")
    there = (found.end[row] > time) & ~(found.death[row] <= time)
    return row[there], start[there], time[there]


def stay_labels(found: Admissions, row: Rows, start: Times, hours: float) -> dict[str, pa.Table]:
    """Return `mortality` and `length_of_stay_7d` rows, `hours` after the start in each row."""
    row, start, time = still_there(found, row, start, hours)
    return {
        "mortality": _labels(found.subject[row], found.died[row], time),
        "length_of_stay_7d": _labels(found.subject[row], found.end[row] - start > LONG_STAY, time),
    }


def stay_length_labels(
    found: Admissions, row: Rows, start: Times, hours: float
) -> dict[str, pa.Table]:
    """Return `length_of_stay` (days from the start to discharge) and `length_of_stay_class` rows.

    They are predicted when those of `stay_labels` are, of the same patients.
    """
    row, start, time = still_there(found, row, start, hours)
    days = (found.end[row] - start) / np.timedelta64(1, "D")
    return stay_day_labels(found.subject[row], days, times=pa.array(time))


def stay_day_labels(
    subject: Ids,
    days: npt.NDArray[np.float64],
    minute: float | None = None,
    *,
    times: pa.Array | None = None,
) -> dict[str, pa.Table]:
    """Return rows of both tasks from the days of stays, asked when `label_rows` says."""
    names = np.array(STAY_CLASSES)[(days >= 3).astype(int) + (days > 7)]
    kinds = {"float_value": days, "categorical_value": names.tolist()}
    return {
        task: label_rows(subject, values, minute, times=times, column=column)
        for task, (column, values) in zip((STAY, f"{STAY}_class"), kinds.items(), strict=True)
    }


def readmission_labels(found: Admissions, asked: Mask, death: Times) -> pa.Table:
    """Return `readmission_30d` rows of the admissions asked for; `death` is of their patients."""
    begun, inside_another = _at_discharge(found)
    follow = np.minimum(begun, max(len(begun) - 1, 0))
    again = (begun < len(begun)) & (found.subject[follow] == found.subject)
    value = again & (found.start[follow] - found.end <= READMISSION)
    usable = asked & found.ended & ~found.died & ~(death <= found.end) & ~inside_another
    return _labels(found.subject[usable], value[usable], found.end[usable])


def _labels(subject: Ids, value: Mask, time: Times) -> pa.Table:
    return label_rows(subject, value, times=pa.array(time))


def _at_discharge(found: Admissions) -> tuple[Rows, Mask]:
    """Return (rows that precede the next admission, whether one of them goes on), at each end.

    Rows are sorted by subject and start, so those begun by an end come before the next one.
    """
    _, subject = np.unique(found.subject, return_inverse=True)
    times, rank = np.unique(np.concatenate([found.start, found.end]), return_inverse=True)
    start, end = (subject * len(times) + half for half in np.split(rank, 2))
    begun = np.searchsorted(start, end, side="right")
    return begun, np.maximum.accumulate(end)[begun - 1] > end
