"""Labels of MIMIC-IV: death in hospital, a long stay, and readmission.

Each is made at a moment when its answer is not yet known. `mortality` and `length_of_stay_7d`:
`label_hours` after the start (the first hospital admission, or the first to an ICU), for patients
who are then alive and in hospital, about that admission; one inside another is part of it.
`readmission_30d`: at every discharge of a patient who is then alive and in no other admission; true
if another begins within 30 days. A patient who dies at home within these days, and the last
admission of the record, count as false.
"""

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.sources.mimic_iv.options import LONG_STAY_HOURS, MimicIvOptions
from ehr_ray.sources.mimic_iv.table_units import Admissions, Ids, Registry, joined, read_whole
from ehr_ray.sources.mimic_iv.tables import STAYS
from ehr_ray.sources.parsing.cells import Mask, Times
from ehr_ray.sources.parsing.labels import label_rows

READMISSION: Final = np.timedelta64(30, "D")
LONG_STAY: Final = np.timedelta64(round(LONG_STAY_HOURS * 3600), "s")


def labels(
    registry: Registry, options: MimicIvOptions, root: str, stays: str | None
) -> dict[str, pa.Table]:
    """Return label rows by task of all kept subjects; `stays` is the file of ICU stays."""
    if options.label_start == "icu":
        assert stays is not None
        row, start = _first_icu(registry, root, stays)
    else:
        row, start = _first_hospital(registry)
    found = registry.admissions
    row = found.outer[row]
    time = start + np.timedelta64(round(options.label_hours * 3600e6), "us")
    there = (found.end[row] > time) & ~(found.death[row] <= time)
    row, start, time = row[there], start[there], time[there]
    subject = found.subject[row]
    return {
        "mortality": _labels(subject, found.died[row], time),
        "length_of_stay_7d": _labels(subject, found.end[row] - start > LONG_STAY, time),
        "readmission_30d": _readmissions(registry),
    }


def _labels(subject: Ids, value: Mask, time: Times) -> pa.Table:
    return label_rows(subject, value, times=pa.array(time))


def _first_hospital(registry: Registry) -> tuple[npt.NDArray[np.intp], Times]:
    """Return (row of each kept subject's first admission, its start)."""
    found = registry.admissions
    _, row = np.unique(found.subject, return_index=True)
    row = row[registry.look_up(found.subject[row])[1]]
    return row, found.start[row]


def _first_icu(registry: Registry, root: str, stays: str) -> tuple[npt.NDArray[np.intp], Times]:
    """Return (row of the admission with each kept subject's first ICU stay, start of the stay)."""
    held = dict.fromkeys(("subject_id", "hadm_id", "stay_id"), np.int64)
    columns = {**held, "intime": "datetime64[us]"}
    found = joined(read_whole(root, stays, STAYS, columns, registry), columns)
    ids, hadm, stay, start = found.values()
    row, known = registry.admissions.find(ids, hadm)
    order = np.lexsort((stay, start, ids))
    order = order[known[order]]
    _, first = np.unique(ids[order], return_index=True)
    order = order[first]
    return row[order], start[order]


def _readmissions(registry: Registry) -> pa.Table:
    found = registry.admissions
    begun, inside_another = _at_discharge(found)
    follow = np.minimum(begun, max(len(begun) - 1, 0))
    again = (begun < len(begun)) & (found.subject[follow] == found.subject)
    value = again & (found.start[follow] - found.end <= READMISSION)
    death = registry.death()[np.searchsorted(registry.subject, found.subject)]
    _, kept = registry.look_up(found.subject)
    usable = kept & ~found.died & ~(death <= found.end) & ~inside_another
    return _labels(found.subject[usable], value[usable], found.end[usable])


def _at_discharge(found: Admissions) -> tuple[npt.NDArray[np.intp], Mask]:
    """Return (rows that precede the next admission, whether one of them goes on), at each end.

    Rows are sorted by subject and start, so those begun by an end come before the next one.
    """
    _, subject = np.unique(found.subject, return_inverse=True)
    times, rank = np.unique(np.concatenate([found.start, found.end]), return_inverse=True)
    start, end = (subject * len(times) + half for half in np.split(rank, 2))
    begun = np.searchsorted(start, end, side="right")
    return begun, np.maximum.accumulate(end)[begun - 1] > end
