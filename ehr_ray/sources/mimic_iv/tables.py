"""The tables of MIMIC-IV that are read, their columns, and the events that a row gives.

Codes follow the public MEDS conversion of MIMIC-IV: parts joined by `//`, `UNK` for a blank one.
They differ from it where its events would be known too early or could not be told apart:

- A quantity's code ends in its unit, infusions included.
- A chart entry without a number is left out, since its words are not kept. A laboratory test
  without one is an event without value, for that it was ordered says something.
- An infusion starts with its rate and ends with its amount, which is known only then.
- A chart entry or laboratory test whose number is blank and whose `value` is an inequality, as
  `>100`, has its number and its sign.
- ICD diagnoses are billed after the stay and stand a second after discharge, so that a prediction
  at discharge does not know them.
- ICD procedures have a date alone. They stand at its end (23:59:59), or a second after discharge
  if that is earlier; midnight would put them before the day's measurements.
- Laboratory tests stand at `charttime`, when the specimen was taken, or when their result was known
  (`--lab-time store`).
"""

from dataclasses import replace
from typing import Final

from ehr_ray.sources.parsing.tables import Event, Table, Titles

DISCHARGE: Final = "discharge"
"""A column that is made: when the admission `hadm_id` ended, NaT where not known."""

DAY_END: Final = "day_end"
"""A column that is made: the end of `chartdate`, or a second after a discharge on that day."""

KNOWN: Final = "known"
"""A column that is made: `storetime`, or `charttime` where that is later or the only one."""


NEVER_DONE: Final = ("statusdescription", "Rewritten")
"""Entered by mistake, not given to the patient."""

PATIENTS: Final = Table(
    "hosp/patients",
    {"gender": "text?", "anchor_age": "number", "anchor_year": "whole", "dod": "time?"},
)
ADMISSIONS: Final = Table(
    "hosp/admissions",
    {
        "hadm_id": "whole",
        "admittime": "time",
        "dischtime": "time",
        "deathtime": "time?",
        "edregtime": "time?",
        "edouttime": "time?",
        "admission_type": "text?",
        "admission_location": "text?",
        "discharge_location": "text?",
        "hospital_expire_flag": "number?",
    },
    (
        Event("ED_REGISTRATION", "edregtime"),
        Event("ED_OUT", "edouttime", not_before=("edregtime",)),
        Event("HOSPITAL_ADMISSION//{admission_type}//{admission_location}", "admittime"),
        Event("HOSPITAL_DISCHARGE//{discharge_location}", DISCHARGE),
    ),
)
STAYS: Final = Table(
    "icu/icustays",
    {
        "hadm_id": "whole",
        "stay_id": "whole",
        "intime": "time",
        "outtime": "time?",
        "first_careunit": "text?",
        "last_careunit": "text?",
    },
    (
        Event("ICU_ADMISSION//{first_careunit}", "intime"),
        Event("ICU_DISCHARGE//{last_careunit}", "outtime", not_before=("intime",)),
    ),
)


def _items(prefix: str) -> tuple[Titles, ...]:
    return (Titles("icu/d_items", prefix, ("itemid",), ("label",)),)


def _icd(prefix: str, table: str) -> tuple[Titles, ...]:
    return (Titles(table, prefix, ("icd_version", "icd_code"), ("long_title",)),)


DIAGNOSES: Final = Table(
    "hosp/diagnoses_icd",
    {"hadm_id": "whole", "icd_version": "whole", "icd_code": "text"},
    (Event("DIAGNOSIS//ICD//{icd_version}//{icd_code}", DISCHARGE, billed=True),),
    _icd("DIAGNOSIS//ICD", "hosp/d_icd_diagnoses"),
)
TABLES: Final = (
    ADMISSIONS,
    Table(
        "hosp/transfers",
        {"eventtype": "text?", "careunit": "text?", "intime": "time"},
        (Event("TRANSFER_TO//{eventtype}//{careunit}", "intime"),),
    ),
    STAYS,
    Table(
        "icu/chartevents",
        {"charttime": "time", "itemid": "whole", "valuenum": "quantity?", "valueuom": "text?"},
        (Event("LAB//{itemid}//{valueuom}", "charttime", "valuenum"),),
        _items("LAB"),
        present="valuenum",
        words=("valuenum", "value"),
    ),
    Table(
        "hosp/labevents",
        {"charttime": "time", "itemid": "whole", "valuenum": "quantity?", "valueuom": "text?"},
        (Event("LAB//{itemid}//{valueuom}", "charttime", "valuenum"),),
        (Titles("hosp/d_labitems", "LAB", ("itemid",), ("label", "fluid")),),
        words=("valuenum", "value"),
    ),
    DIAGNOSES,
    Table(
        "hosp/procedures_icd",
        {"hadm_id": "whole", "chartdate": "time", "icd_version": "whole", "icd_code": "text"},
        (Event("PROCEDURE//ICD//{icd_version}//{icd_code}", DAY_END),),
        _icd("PROCEDURE//ICD", "hosp/d_icd_procedures"),
    ),
    Table(
        "icu/procedureevents",
        {"starttime": "time", "endtime": "time?", "itemid": "whole"},
        (
            Event("PROCEDURE//START//{itemid}", "starttime"),
            Event("PROCEDURE//END//{itemid}", "endtime", not_before=("starttime",)),
        ),
        _items("PROCEDURE//START") + _items("PROCEDURE//END"),
        never_done=NEVER_DONE,
    ),
    Table(
        "hosp/prescriptions",
        {"starttime": "time?", "stoptime": "time?", "drug": "text?"},
        (
            Event("MEDICATION//START//{drug}", "starttime"),
            Event("MEDICATION//STOP//{drug}", "stoptime", not_before=("starttime",)),
        ),
    ),
    Table(
        "icu/inputevents",
        {
            "starttime": "time",
            "endtime": "time?",
            "itemid": "whole",
            "rate": "quantity?",
            "rateuom": "text?",
            "amount": "quantity?",
            "amountuom": "text?",
        },
        (
            Event("INFUSION_START//{itemid}//{rateuom}", "starttime", "rate"),
            Event("INFUSION_END//{itemid}//{amountuom}", "endtime", "amount", ("starttime",)),
        ),
        _items("INFUSION_START") + _items("INFUSION_END"),
        never_done=NEVER_DONE,
    ),
    Table(
        "icu/outputevents",
        {"charttime": "time", "itemid": "whole", "value": "quantity?", "valueuom": "text?"},
        (Event("SUBJECT_FLUID_OUTPUT//{itemid}//{valueuom}", "charttime", "value"),),
        _items("SUBJECT_FLUID_OUTPUT"),
        present="value",
    ),
)
"""Every table that gives events by the row, in the order in which events of one minute stand."""

BY_NAME: Final = {table.name: table for table in (PATIENTS, *TABLES)}


def timed(table: Table, lab_time: str) -> Table:
    """Return the table with laboratory tests at `KNOWN` where `lab_time` is `store`."""
    if lab_time != "store" or table.name != "hosp/labevents":
        return table
    events = tuple(replace(event, time=KNOWN) for event in table.events)
    return replace(table, columns={**table.columns, "storetime": "time?"}, events=events)
