"""The tables of the OMOP common data model 5.3 and 5.4 that are read, and the events of a row.

Codes are the ids of standard concepts, which `concept` has words for; where a row has none (0), the
code is `SOURCE//` and what the source wrote. Nothing stands before it could be known:

- A row with a date alone, or with midnight for its time, as tables made from dates have, stands at
  the end of the day, or at the end of its visit where that is earlier on the day.
- A condition of an inpatient visit stands a second after the visit, since most are coded for
  billing, and is left out where nobody knows when that ended; another one stands at its own time.
- A measurement without a number has its answer, a concept, in place of a unit.
- A drug starts at its first time and ends at its last.
- A visit begins at the start of its day, so that it is there before what happened in it.
"""

from typing import Final

from ehr_ray.sources.parsing.tables import Event, Table

KEY: Final = "person_id"
VISIT: Final = "visit_occurrence_id"
AT: Final = "at"
END: Final = "end"
"""Columns that are made: when a row was known, and when what it tells of ended."""
CONCEPT: Final = "concept"
"""A column that is made: the row's concept, or `SOURCE//` and its source value."""

INPATIENT: Final = ("9201", "262", "8717")
"""Visits in a hospital: inpatient, emergency room and inpatient, inpatient hospital."""
INTENSIVE: Final = ("32037", "581379")
"""Details of visits in intensive care: intensive care, inpatient critical care facility."""
DIED: Final = "4216643"
"""Discharged to: patient died."""
OPERATOR: Final = "operator_concept_id"
OPERATORS: Final = {"4171756": "<", "4171754": "<=", "4172704": ">", "4171755": ">="}
"""What a measured value is a bound of."""
SEX: Final = {"8532": "F", "8507": "M"}


def _table(
    name: str,
    columns: dict[str, str],
    *events: Event,
    optional: tuple[str, ...] = (),
    key: str = KEY,
) -> Table:
    return Table(name, columns, events, key=key, optional=frozenset(optional))


PERSON: Final = _table(
    "person",
    {
        "gender_concept_id": "concept?",
        "year_of_birth": "whole?",
        "month_of_birth": "whole?",
        "day_of_birth": "whole?",
        "birth_datetime": "time?",
        "race_concept_id": "concept?",
        "ethnicity_concept_id": "concept?",
        "care_site_id": "concept?",
    },
    optional=("month_of_birth", "day_of_birth", "birth_datetime", "care_site_id"),
)
VISITS: Final = _table(
    "visit_occurrence",
    {
        VISIT: "whole",
        "visit_concept_id": "concept?",
        "visit_start_date": "time",
        "visit_start_datetime": "time?",
        "visit_end_date": "time?",
        "visit_end_datetime": "time?",
        "discharged_to_concept_id": "concept?",
        "discharge_to_concept_id": "concept?",
    },
    optional=(
        *("visit_start_datetime", "visit_end_datetime"),
        *("discharged_to_concept_id", "discharge_to_concept_id"),
    ),
)
DEATH: Final = _table(
    "death", {"death_date": "time?", "death_datetime": "time?"}, optional=("death_datetime",)
)
CONCEPTS: Final = Table("concept", {"concept_name": "text?"}, key="concept_id", loose_quotes=True)


def _clinical(
    name: str,
    what: str,
    start: str,
    *events: Event,
    end: str | None = None,
    more: dict[str, str] | None = None,
    optional: tuple[str, ...] = (),
) -> Table:
    """Return a table of what was found or done: a concept, a visit, and times `<start>_date`."""
    named = [start, *([end] if end else [])]
    times = {f"{n}_{kind}": "time?" for n in named for kind in ("date", "datetime")}
    times[f"{start}_date"] = "time"
    columns = {
        f"{what}_concept_id": "concept?",
        f"{what}_source_value": "text?",
        VISIT: "whole?",
        **times,
        **(more or {}),
    }
    beside = (f"{what}_source_value", VISIT, *(f"{n}_datetime" for n in named), *optional)
    return _table(name, columns, *events, optional=beside)


DETAILS: Final = _clinical(
    "visit_detail",
    "visit_detail",
    "visit_detail_start",
    Event("{begin}//{concept}", AT),
    Event("{finish}//{concept}", END, not_before=(AT,)),
    end="visit_detail_end",
)
CONDITIONS: Final = _clinical(
    "condition_occurrence", "condition", "condition_start", Event("CONDITION//{concept}", AT)
)
TABLES: Final = (
    DETAILS,
    _clinical(
        "measurement",
        "measurement",
        "measurement",
        Event("MEASUREMENT//{concept}//{unit}", AT, "value_as_number"),
        more={
            "value_as_number": "quantity?",
            OPERATOR: "concept?",
            "value_as_concept_id": "concept?",
            "unit_concept_id": "concept?",
            "unit_source_value": "text?",
        },
        optional=(OPERATOR, "unit_source_value", "value_as_concept_id"),
    ),
    _clinical(
        "observation",
        "observation",
        "observation",
        Event("OBSERVATION//{concept}//{unit}", AT, "value_as_number"),
        more={
            "value_as_number": "quantity?",
            "value_as_concept_id": "concept?",
            "unit_concept_id": "concept?",
            "unit_source_value": "text?",
        },
        optional=("unit_source_value", "unit_concept_id", "value_as_concept_id"),
    ),
    _clinical(
        "drug_exposure",
        "drug",
        "drug_exposure_start",
        Event("DRUG_START//{concept}", AT, "quantity"),
        Event("DRUG_END//{concept}", END, not_before=(AT,)),
        end="drug_exposure_end",
        more={"quantity": "quantity?"},
        optional=("quantity",),
    ),
    _clinical("procedure_occurrence", "procedure", "procedure", Event("PROCEDURE//{concept}", AT)),
    CONDITIONS,
)
"""Every table that gives events by the row, in the order in which events of one minute stand."""

BY_NAME: Final = {table.name: table for table in (PERSON, VISITS, DEATH, *TABLES)}

DESCRIPTIONS: Final = {
    "GENDER//F": "Female",
    "GENDER//M": "Male",
    "MEDS_BIRTH": "Birth",
    "MEDS_DEATH": "Death",
}
