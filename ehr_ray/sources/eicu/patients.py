"""What is known of each patient and each stay: who and where, admissions, discharges, death."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.sources.eicu.stays import NO_HOSPITAL, Stays
from ehr_ray.sources.parsing.cells import Floats, Times, events_table
from ehr_ray.sources.parsing.kinds import UNKNOWN

_SEX: Final = {"Female": "F", "Male": "M"}
Rows = npt.NDArray[np.intp]


def patient_events(stays: Stays, hospitals: dict[int, tuple[str, ...]]) -> pa.Table:
    """Return the `EVENTS` of all patients; `hospitals` are the static codes of each hospital.

    Static are sex, age and ethnicity, as of the first stay, and `HOSPITAL//<id>` of every hospital
    that a patient was in, where it is told. A hospital stay is told once, however many unit stays
    it has.
    """
    return pa.concat_tables([_static(stays, hospitals), _timed(stays), _deaths(stays)])


def _static(stays: Stays, hospitals: dict[int, tuple[str, ...]]) -> pa.Table:
    """Return what has no time: of the first stay, and of every hospital a patient was in."""
    rows = stays.rows
    first = stays.first_of(stays.subject)
    never = np.full(len(stays.subject), np.datetime64("NaT"), "datetime64[us]")
    places = np.stack([stays.subject, rows["hospitalid"]])
    each = np.sort(np.unique(places, axis=1, return_index=True)[1])
    each = each[rows["hospitalid"][each] != NO_HOSPITAL]
    known = [(i, code) for i in each for code in hospitals.get(int(rows["hospitalid"][i]), ())]
    at_home = np.array([i for i, _ in known], np.intp)
    aged = first[~np.isnan(stays.age[first])]

    def pick(at: Rows, codes: Sequence[str], values: Floats | None = None) -> pa.Table:
        return _events(stays.subject[at], never[at], codes, values)

    return pa.concat_tables(
        [
            pick(first, ["GENDER//" + _SEX.get(text, text) for text in rows["gender"][first]]),
            pick(aged, ["AGE"] * len(aged), stays.age[aged]),
            pick(first, [f"ETHNICITY//{text}" for text in rows["ethnicity"][first]]),
            pick(each, [f"HOSPITAL//{h}" for h in rows["hospitalid"][each]]),
            pick(at_home, [code for _, code in known]),
        ]
    )


def _timed(stays: Stays) -> pa.Table:
    """Return admissions and discharges, and what was measured at them, where their time is told."""
    rows = stays.rows
    hospital_stay = np.stack([stays.subject, rows["patienthealthsystemstayid"]])
    once = stays.first_of(np.unique(hospital_stay, axis=1, return_inverse=True)[1].reshape(-1))
    every = np.arange(len(stays.subject))

    def pick(at: Rows, times: Times, code: str, *columns: str) -> pa.Table:
        at = at[~np.isnat(times[at])]
        words = zip(*(rows[column][at] for column in columns), strict=True)
        return _events(stays.subject[at], times[at], ["//".join([code, *w]) for w in words])

    def measured(times: Times, code: str, column: str) -> pa.Table:
        at = every[~np.isnan(rows[column]) & ~np.isnat(times)]
        return _events(stays.subject[at], times[at], [code] * len(at), rows[column][at])

    return pa.concat_tables(
        [
            pick(once, stays.hospital_start, "HOSPITAL_ADMISSION", "hospitaladmitsource"),
            pick(every, stays.unit_start, "UNIT_ADMISSION", "unittype", "unitadmitsource"),
            measured(stays.unit_start, "ADMISSION_HEIGHT", "admissionheight"),
            measured(stays.unit_start, "ADMISSION_WEIGHT", "admissionweight"),
            measured(stays.unit_end, "DISCHARGE_WEIGHT", "dischargeweight"),
            pick(every, stays.unit_end, "UNIT_DISCHARGE", "unitdischargelocation"),
            pick(once, stays.hospital_end, "HOSPITAL_DISCHARGE", "hospitaldischargelocation"),
        ]
    )


def hospital_codes(beds: str, teaching: str, region: str) -> tuple[str, ...]:
    """Return the static codes of a hospital, of what is known of it."""
    kinds = ("HOSPITAL_BEDS", beds), ("HOSPITAL_TEACHING", teaching), ("HOSPITAL_REGION", region)
    return tuple(f"{kind}//{text}" for kind, text in kinds if text != UNKNOWN)


def _deaths(stays: Stays) -> pa.Table:
    """Return the deaths: at the discharge from the unit if it was there, else from the hospital."""
    died, _ = stays.died()
    unit = stays.rows["unitdischargestatus"] == "Expired"
    time = np.where(unit & ~np.isnat(stays.unit_end), stays.unit_end, stays.hospital_end)
    order = np.lexsort((time, stays.subject))
    order = order[(died & ~np.isnat(time))[order]]
    subject, first = np.unique(stays.subject[order], return_index=True)
    return _events(subject, time[order[first]], ["MEDS_DEATH"] * len(first))


def _events(
    ids: npt.NDArray[np.int64], times: Times, codes: Sequence[str], values: Floats | None = None
) -> pa.Table:
    values = np.full(len(ids), np.nan) if values is None else values.astype(np.float64)
    return events_table(ids, times, pa.array(codes, pa.string()), values)
