"""Labels of eICU: death in hospital, a long stay, and return to intensive care.

`mortality_24h`, `mortality` and `length_of_stay_7d` are predicted in the first unit stay of each
patient, 24 hours or `label_hours` after its start, of those who are then still in the unit: eICU
has no data beyond it. Death is in the hospital, in or after the unit, and a stay is long if the
hospital stay ends more than 7 days after the unit admission. `icu_readmission` is predicted at
every discharge alive from intensive care that is no move to another unit of it; true if a later
unit stay of the same hospital stay is a readmission. Whether a patient came back to the hospital
within some days cannot be known, since dates are not told.
"""

from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.sources.eicu.options import EicuOptions
from ehr_ray.sources.eicu.stays import Stays, as_time
from ehr_ray.sources.parsing.labels import LONG_STAY_HOURS, label_rows

DAY_HOURS: Final = 24.0
STEPDOWN: Final = "stepdown/other"


def labels(stays: Stays, options: EicuOptions) -> dict[str, pa.Table]:
    """Return label rows by task."""
    hours = options.label_hours
    first = stays.first_of(stays.subject)
    start = stays.unit_start[first]
    died, known = stays.died()
    death = [bool(d) if k else None for d, k in zip(died[first], known[first], strict=True)]
    end = stays.hospital_end[first]
    days = end - start > _hours(LONG_STAY_HOURS)
    long = [None if unknown else bool(d) for d, unknown in zip(days, np.isnat(end), strict=True)]
    found = {
        "mortality_24h": (death, DAY_HOURS),
        "mortality": (death, hours),
        "length_of_stay_7d": (long, hours),
    }
    tables = {}
    for task, (values, after) in found.items():
        time = start + _hours(after)
        at = np.flatnonzero(stays.unit_end[first] > time)
        tables[task] = label_rows(
            stays.subject[first][at], [values[i] for i in at], times=pa.array(time[at])
        )
    return {**tables, "icu_readmission": _readmissions(stays)}


def _hours(hours: float) -> np.timedelta64:
    return as_time(np.array([hours * 60.0]))[0]


def _readmissions(stays: Stays) -> pa.Table:
    rows, order = stays.rows, stays.order
    kind = rows["unitstaytype"][order]
    stay = np.stack([stays.subject, rows["patienthealthsystemstayid"]])[:, order]
    last = np.append(np.any(stay[:, 1:] != stay[:, :-1], axis=0), True)
    again = np.zeros(len(order), bool)
    for i in range(len(order) - 2, -1, -1):
        again[i] = not last[i] and (again[i + 1] or kind[i + 1] == "readmit")
    moved = ~last & (np.append(kind[1:], "") == "transfer")
    alive = rows["unitdischargestatus"][order] == "Alive"
    asked = alive & ~moved & (kind != STEPDOWN) & ~np.isnat(stays.unit_end[order])
    # Of two stays that end at one moment the later one tells.
    end, subject = stays.unit_end[order], stays.subject[order]
    pairs = np.stack([subject[asked], end[asked].astype(np.int64)])
    at = np.flatnonzero(asked)
    if len(at):
        _, backwards = np.unique(pairs[:, ::-1], axis=1, return_index=True)
        at = at[::-1][backwards]
    return label_rows(subject[at], again[at], times=pa.array(end[at]))
