"""A small OMOP common data model, of 5.4 or 5.3: three persons, or those given.

Person 1 is in hospital twice within a month and at a doctor's; 2 dies in intensive care; 3 was
never in hospital.
"""

import csv
import gzip

import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = {
    "person": "person_id gender_concept_id year_of_birth month_of_birth day_of_birth "
    "birth_datetime race_concept_id ethnicity_concept_id location_id provider_id care_site_id "
    "person_source_value gender_source_value",
    "visit_occurrence": "visit_occurrence_id person_id visit_concept_id visit_start_date "
    "visit_start_datetime visit_end_date visit_end_datetime visit_type_concept_id provider_id "
    "care_site_id visit_source_value discharged_to_concept_id preceding_visit_occurrence_id",
    "visit_detail": "visit_detail_id person_id visit_detail_concept_id visit_detail_start_date "
    "visit_detail_start_datetime visit_detail_end_date visit_detail_end_datetime "
    "visit_detail_type_concept_id visit_detail_source_value visit_occurrence_id",
    "condition_occurrence": "condition_occurrence_id person_id condition_concept_id "
    "condition_start_date condition_start_datetime condition_end_date condition_end_datetime "
    "condition_type_concept_id visit_occurrence_id condition_source_value",
    "drug_exposure": "drug_exposure_id person_id drug_concept_id drug_exposure_start_date "
    "drug_exposure_start_datetime drug_exposure_end_date drug_exposure_end_datetime "
    "drug_type_concept_id quantity visit_occurrence_id drug_source_value",
    "procedure_occurrence": "procedure_occurrence_id person_id procedure_concept_id "
    "procedure_date procedure_datetime procedure_type_concept_id visit_occurrence_id "
    "procedure_source_value",
    "measurement": "measurement_id person_id measurement_concept_id measurement_date "
    "measurement_datetime measurement_type_concept_id operator_concept_id value_as_number "
    "value_as_concept_id unit_concept_id visit_occurrence_id measurement_source_value "
    "unit_source_value",
    "observation": "observation_id person_id observation_concept_id observation_date "
    "observation_datetime observation_type_concept_id value_as_number value_as_string "
    "value_as_concept_id unit_concept_id visit_occurrence_id observation_source_value "
    "unit_source_value",
    "death": "person_id death_date death_datetime death_type_concept_id cause_concept_id",
    "concept": "concept_id concept_name domain_id vocabulary_id concept_class_id "
    "standard_concept concept_code valid_start_date valid_end_date invalid_reason",
}
"""The header of every table that is read, as of 5.4."""

OF_5_3 = {"discharged_to_concept_id": "discharge_to_concept_id"}


def visit(person, number, start, end, concept=9201, **more):
    """Return a row of `visit_occurrence`; times as dates or as dates with a clock."""
    return {
        "visit_occurrence_id": number,
        "person_id": person,
        "visit_concept_id": concept,
        "visit_start_date": start[:10],
        "visit_start_datetime": start,
        "visit_end_date": end[:10],
        "visit_end_datetime": end,
        **more,
    }


SMALL = {
    "person": [
        "person_id=1,gender_concept_id=8532,year_of_birth=1960,month_of_birth=5,day_of_birth=7,"
        "race_concept_id=8527,ethnicity_concept_id=0,care_site_id=77",
        "person_id=2,gender_concept_id=8507,year_of_birth=1950,race_concept_id=0",
        "person_id=3,gender_concept_id=0,year_of_birth=2001",
    ],
    "visit_occurrence": [
        visit(1, 11, "2020-03-01 08:00:00", "2020-03-05 12:00:00", discharged_to_concept_id=581476),
        visit(1, 12, "2020-03-20", "2020-03-22"),
        visit(1, 13, "2020-02-01", "2020-02-01", concept=9202),
        visit(2, 21, "2021-06-01 10:00:00", "2021-06-04 18:00:00", concept=262),
    ],
    "visit_detail": [
        "visit_detail_id=211,person_id=2,visit_detail_concept_id=32037,visit_occurrence_id=21,"
        "visit_detail_start_date=2021-06-01,visit_detail_start_datetime=2021-06-01 11:00:00,"
        "visit_detail_end_date=2021-06-04",
        "visit_detail_id=212,person_id=1,visit_detail_concept_id=0,visit_occurrence_id=11,"
        "visit_detail_source_value=4 West,visit_detail_start_date=2020-03-02",
    ],
    "condition_occurrence": [
        "person_id=1,condition_concept_id=320128,condition_start_date=2020-03-01,"
        "condition_start_datetime=2020-03-01 09:00:00,visit_occurrence_id=11",
        "person_id=1,condition_concept_id=0,condition_source_value=J45,"
        "condition_start_date=2020-02-01,visit_occurrence_id=13",
    ],
    "drug_exposure": [
        "person_id=1,drug_concept_id=1112807,drug_exposure_start_date=2020-03-02,"
        "drug_exposure_start_datetime=2020-03-02 07:30:00,drug_exposure_end_date=2020-03-05,"
        "quantity=4,visit_occurrence_id=11"
    ],
    "procedure_occurrence": [
        "person_id=2,procedure_concept_id=4230167,procedure_date=2021-06-02,"
        "procedure_datetime=2021-06-02 00:00:00,visit_occurrence_id=21",
    ],
    "measurement": [
        "person_id=2,measurement_concept_id=3027018,measurement_date=2021-06-01,"
        "measurement_datetime=2021-06-01 12:15:00,value_as_number=88,unit_concept_id=8483",
        "person_id=2,measurement_concept_id=3016723,measurement_date=2021-06-02,"
        "value_as_number=1.4,unit_concept_id=0,unit_source_value=mg/dL,visit_occurrence_id=21",
        "person_id=2,measurement_concept_id=3037110,measurement_date=2021-06-04,"
        "value_as_concept_id=4126681,visit_occurrence_id=21",
    ],
    "observation": [
        "person_id=3,observation_concept_id=4275495,observation_date=2019-01-01,"
        "value_as_concept_id=45879404,value_as_string=never"
    ],
    "death": ["person_id=2,death_date=2021-06-04"],
    "concept": [
        "8532,FEMALE,Gender,Gender,Gender,S,F,19700101,20991231,",
        "9201,Inpatient Visit,Visit,Visit,Visit,S,IP,19700101,20991231,",
        "3027018,Heart rate,Measurement,LOINC,Clinical,S,8867-4,19700101,20991231,",
        "8483,counts per minute,Unit,UCUM,Unit,S,{counts}/min,19700101,20991231,",
        "320128,Essential hypertension,Condition,SNOMED,Disorder,S,59621000,19700101,20991231,",
        "3037110,Fasting glucose,Measurement,LOINC,Lab,S,1558-6,19700101,20991231,",
        "4126681,Detected,Meas Value,SNOMED,Qualifier,S,260373001,19700101,20991231,",
    ],
}
"""Rows as dicts, CSV or name=value."""


def write(folder, tables=None, *, without=(), form="csv", version="5.4", upper=False, tabs=()):
    """Write a folder and return it; tables not given are those of `SMALL`.

    `form` is csv, csv.gz or parquet; the tables of `tabs` have tabs between their cells.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in {**SMALL, **(tables or {})}.items():
        if name in without:
            continue
        columns = COLUMNS[name].split()
        cells = [_cells(row, columns) for row in rows]
        if version == "5.3":
            columns = [OF_5_3.get(column, column) for column in columns]
        header = [column.upper() for column in columns] if upper else columns
        path = folder / f"{name.upper() if upper else name}.{form}"
        if form == "parquet":
            pq.write_table(_arrow(header, cells), path)
            continue
        with gzip.open(path, "wt") if form == "csv.gz" else open(path, "w") as file:
            between = "\t" if name in tabs else ","
            file.writelines(between.join(row) + "\n" for row in [header, *cells])
    return folder


def arrow(tables=None):
    """Return the tables of a database, name -> Arrow; those not given are those of `SMALL`."""
    found = {}
    for name, rows in {**SMALL, **(tables or {})}.items():
        columns = COLUMNS[name].split()
        found[name] = _arrow(columns, [_cells(row, columns) for row in rows])
    return found


def _arrow(header, cells):
    """Return ids as numbers, dates as dates and times as timestamps, as databases have them."""
    table = {}
    for i, column in enumerate(header):
        values = [row[i] or None for row in cells]
        name = column.lower()
        if name.endswith("_datetime"):
            values = pa.array(values, pa.string()).cast(pa.timestamp("us"))
        elif name.endswith("_date") and not name.startswith("valid"):
            values = pa.array(values, pa.string()).cast(pa.date32())
        elif name.endswith("_id") and name not in (
            "domain_id",
            "vocabulary_id",
            "concept_class_id",
        ):
            values = pa.array(values, pa.string()).cast(pa.int64())
        elif name == "value_as_number":
            values = pa.array(values, pa.string()).cast(pa.float64())
        else:
            values = pa.array(values, pa.string())
        table[column] = values
    return pa.table(table)


def _cells(row, columns):
    if isinstance(row, str) and "=" not in row:
        row = dict(zip(columns, next(csv.reader([row])), strict=True))
    elif isinstance(row, str):
        row = dict(cell.split("=", 1) for cell in next(csv.reader([row])))
    assert set(row) <= set(columns), row
    return [str(row.get(column, "")) for column in columns]
