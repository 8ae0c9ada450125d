"""The tables of eICU-CRD 2.0 that are read, their columns, and the events that a row gives.

A column that ends in `offset` counts minutes from the unit admission of its row's stay. Codes are
words of the table joined by `//`, `UNK` for a blank one. Nothing stands before it could be known:

- A measured value stands when it was measured, as in other sources.
- History, allergies and drugs taken before stand when they were entered.
- An ordered drug starts no earlier than it was ordered.
- A culture stands when it was taken. What grew is known days later, at a time that is not told, and
  stands a second after the discharge from the unit.
- A weight at discharge stands there.

Left out: the APACHE tables, of which the variables are worst values of a day and the results say
how the stay ended; free notes; and who cared for the patient.
"""

from typing import Final

from ehr_ray.sources.parsing.tables import Event, Table

DISCHARGE: Final = "unit_discharge"
"""A column that is made: the end of the row's unit stay."""
STAY: Final = "patientunitstayid"

PATIENT: Final = Table(
    "patient",
    {
        "uniquepid": "text",
        "patienthealthsystemstayid": "whole",
        "hospitalid": "number?",
        "gender": "text?",
        "age": "text?",
        "ethnicity": "text?",
        "unittype": "text?",
        "unitstaytype": "text?",
        "unitvisitnumber": "number?",
        "hospitaladmittime24": "text?",
        "hospitaladmitoffset": "number",
        "hospitaladmitsource": "text?",
        "hospitaldischargeyear": "whole",
        "hospitaldischargeoffset": "number",
        "hospitaldischargelocation": "text?",
        "hospitaldischargestatus": "text?",
        "unitadmitsource": "text?",
        "unitdischargeoffset": "number",
        "unitdischargelocation": "text?",
        "unitdischargestatus": "text?",
        "admissionheight": "quantity?",
        "admissionweight": "quantity?",
        "dischargeweight": "quantity?",
    },
    key=STAY,
)
HOSPITAL: Final = Table(
    "hospital",
    {"numbedscategory": "text?", "teachingstatus": "text?", "region": "text?"},
    key="hospitalid",
)


def _table(name: str, columns: dict[str, str], *events: Event, **more: object) -> Table:
    return Table(name, columns, events, key=STAY, **more)  # type: ignore[arg-type]


def _wide(name: str, *columns: str) -> Table:
    """Return a table with a column for each vital sign."""
    kinds = {"observationoffset": "number", **dict.fromkeys(columns, "quantity?")}
    events = (Event(f"VITAL//{c}", "observationoffset", c, needs=c) for c in columns)
    return _table(name, kinds, *events)


TABLES: Final = (
    _wide(
        "vitalPeriodic",
        *("temperature", "sao2", "heartrate", "respiration", "cvp", "etco2"),
        *("systemicsystolic", "systemicdiastolic", "systemicmean"),
        *("pasystolic", "padiastolic", "pamean", "st1", "st2", "st3", "icp"),
    ),
    _wide(
        "vitalAperiodic",
        *("noninvasivesystolic", "noninvasivediastolic", "noninvasivemean"),
        *("paop", "cardiacoutput", "cardiacinput", "svr", "svri", "pvr", "pvri"),
    ),
    _table(
        "lab",
        {
            "labresultoffset": "number",
            "labname": "text",
            "labresult": "quantity?",
            "labmeasurenamesystem": "text?",
        },
        Event("LAB//{labname}//{labmeasurenamesystem}", "labresultoffset", "labresult"),
    ),
    _table(
        "customLab",
        {"labotheroffset": "number", "labothername": "text", "labotherresult": "quantity?"},
        Event("LAB//{labothername}", "labotheroffset", "labotherresult"),
    ),
    _table(
        "nurseCharting",
        {
            "nursingchartoffset": "number",
            "nursingchartcelltypevallabel": "text",
            "nursingchartcelltypevalname": "text?",
            "nursingchartvalue": "quantity?",
        },
        Event(
            "NURSE_CHARTING//{nursingchartcelltypevallabel}//{nursingchartcelltypevalname}",
            "nursingchartoffset",
            "nursingchartvalue",
            needs="nursingchartvalue",
        ),
        numeric="nursingchartvalue",
    ),
    _table(
        "respiratoryCharting",
        {
            "respchartoffset": "number",
            "respchartvaluelabel": "text",
            "respchartvalue": "quantity?",
        },
        Event(
            "RESPIRATORY//{respchartvaluelabel}",
            "respchartoffset",
            "respchartvalue",
            needs="respchartvalue",
        ),
        numeric="respchartvalue",
    ),
    _table(
        "respiratoryCare",
        {"respcarestatusoffset": "number", "airwaytype": "text?"},
        Event("AIRWAY//{airwaytype}", "respcarestatusoffset", needs="airwaytype"),
    ),
    _table(
        "intakeOutput",
        {"intakeoutputoffset": "number", "celllabel": "text", "cellvaluenumeric": "quantity?"},
        Event("INTAKE_OUTPUT//{celllabel}", "intakeoutputoffset", "cellvaluenumeric"),
    ),
    _table(
        "nurseAssessment",
        {"nurseassessoffset": "number", "cellattribute": "text", "cellattributevalue": "text?"},
        Event("ASSESSMENT//{cellattribute}//{cellattributevalue}", "nurseassessoffset"),
    ),
    _table(
        "nurseCare",
        {"nursecareoffset": "number", "cellattribute": "text", "cellattributevalue": "text?"},
        Event("CARE//{cellattribute}//{cellattributevalue}", "nursecareoffset"),
    ),
    _table(
        "physicalExam",
        {"physicalexamoffset": "number", "physicalexampath": "text"},
        Event("EXAM//{physicalexampath}", "physicalexamoffset"),
    ),
    _table(
        "infusiondrug",
        {"infusionoffset": "number", "drugname": "text", "drugrate": "quantity?"},
        Event("INFUSION//{drugname}", "infusionoffset", "drugrate"),
    ),
    _table(
        "medication",
        {
            "drugorderoffset": "number",
            "drugstartoffset": "number",
            "drugstopoffset": "number?",
            "drugname": "text?",
            "drughiclseqno": "concept?",
        },
        Event(
            "MEDICATION//START//{drugname|drughiclseqno}",
            "drugstartoffset",
            not_before=("drugorderoffset",),
        ),
        Event(
            "MEDICATION//STOP//{drugname|drughiclseqno}",
            "drugstopoffset",
            not_before=("drugorderoffset", "drugstartoffset"),
        ),
        never_done=("drugordercancelled", "Yes"),
    ),
    _table(
        "admissiondrug",
        {"drugenteredoffset": "number", "drugname": "text"},
        Event("HOME_MEDICATION//{drugname}", "drugenteredoffset"),
    ),
    _table(
        "treatment",
        {"treatmentoffset": "number", "treatmentstring": "text"},
        Event("TREATMENT//{treatmentstring}", "treatmentoffset"),
    ),
    _table(
        "diagnosis",
        {"diagnosisoffset": "number", "diagnosisstring": "text"},
        Event("DIAGNOSIS//{diagnosisstring}", "diagnosisoffset"),
    ),
    _table(
        "admissionDx",
        {"admitdxenteredoffset": "number", "admitdxpath": "text"},
        Event("ADMISSION_DIAGNOSIS//{admitdxpath}", "admitdxenteredoffset"),
    ),
    _table(
        "pastHistory",
        {"pasthistoryenteredoffset": "number", "pasthistorypath": "text"},
        Event("HISTORY//{pasthistorypath}", "pasthistoryenteredoffset"),
    ),
    _table(
        "allergy",
        {"allergyenteredoffset": "number", "allergyname": "text?", "drugname": "text?"},
        Event("ALLERGY//{allergyname|drugname}", "allergyenteredoffset"),
    ),
    _table(
        "microLab",
        {
            "culturetakenoffset": "number",
            "culturesite": "text?",
            "organism": "text?",
            "antibiotic": "text?",
            "sensitivitylevel": "text?",
        },
        Event("CULTURE//{culturesite}", "culturetakenoffset"),
        Event("ORGANISM//{culturesite}//{organism}", DISCHARGE, needs="organism", billed=True),
        Event(
            "SENSITIVITY//{organism}//{antibiotic}//{sensitivitylevel}",
            DISCHARGE,
            needs="antibiotic",
            billed=True,
        ),
    ),
    _table(
        "carePlanGeneral",
        {"cplitemoffset": "number", "cplgroup": "text", "cplitemvalue": "text?"},
        Event("CARE_PLAN//{cplgroup}//{cplitemvalue}", "cplitemoffset"),
    ),
    _table(
        "carePlanInfectiousDisease",
        {
            "cplinfectdiseaseoffset": "number",
            "infectdiseasesite": "text?",
            "infectdiseaseassessment": "text?",
        },
        Event(
            "CARE_PLAN//INFECTION//{infectdiseasesite}//{infectdiseaseassessment}",
            "cplinfectdiseaseoffset",
        ),
    ),
    _table(
        "carePlanEOL",
        {"cpleolsaveoffset": "number"},
        Event("CARE_PLAN//END_OF_LIFE", "cpleolsaveoffset"),
    ),
)
"""Every table that gives events by the row, in the order in which events of one minute stand."""

BY_NAME: Final = {table.name: table for table in (PATIENT, *TABLES)}

DESCRIPTIONS: Final = {
    "GENDER//F": "Female",
    "GENDER//M": "Male",
    "AGE": "Age at the first stay (years; above 89 all are 90)",
    "ADMISSION_HEIGHT": "Height at admission to the unit (cm)",
    "ADMISSION_WEIGHT": "Weight at admission to the unit (kg)",
    "DISCHARGE_WEIGHT": "Weight at discharge from the unit (kg)",
    "MEDS_DEATH": "Death",
}
