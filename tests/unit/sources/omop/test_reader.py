import itertools
import json
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import omop
from made_up.omop import visit

from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import InputError
from ehr_ray.events.schema import RECORD
from ehr_ray.sources.omop import reader
from ehr_ray.sources.omop.options import OmopOptions
from ehr_ray.sources.parsing import blocks, csv_ranges, parquet_files

EXPECTED = """\
1 static CARE_SITE//77
1 static GENDER//F
1 static RACE//8527
1 1960-05-07 00:00:00 MEDS_BIRTH
1 2020-02-01 00:00:00 VISIT_START//9202
1 2020-02-01 23:59:59 CONDITION//SOURCE//J45
1 2020-02-01 23:59:59 VISIT_END//9202
1 2020-03-01 08:00:00 HOSPITAL_ADMISSION//9201
1 2020-03-02 00:00:00 UNIT_START//SOURCE//4 West
1 2020-03-02 07:30:00 DRUG_START//1112807 4
1 2020-03-05 12:00:00 DRUG_END//1112807
1 2020-03-05 12:00:00 HOSPITAL_DISCHARGE//581476
1 2020-03-05 12:00:01 CONDITION//320128
1 2020-03-20 00:00:00 HOSPITAL_ADMISSION//9201
1 2020-03-22 23:59:59 HOSPITAL_DISCHARGE//UNK
2 static GENDER//M
2 1950-01-01 00:00:00 MEDS_BIRTH
2 2021-06-01 10:00:00 HOSPITAL_ADMISSION//262
2 2021-06-01 11:00:00 ICU_ADMISSION//32037
2 2021-06-01 12:15:00 MEASUREMENT//3027018//8483 88
2 2021-06-02 23:59:59 MEASUREMENT//3016723//SOURCE//mg/dL 1.4
2 2021-06-02 23:59:59 PROCEDURE//4230167
2 2021-06-04 18:00:00 HOSPITAL_DISCHARGE//UNK
2 2021-06-04 18:00:00 ICU_DISCHARGE//32037
2 2021-06-04 18:00:00 MEASUREMENT//3037110//4126681
2 2021-06-04 18:00:00 MEDS_DEATH
3 static GENDER//0
3 2001-01-01 00:00:00 MEDS_BIRTH
3 2019-01-01 23:59:59 OBSERVATION//4275495//45879404
"""


def written(table):
    lines = []
    for row in table.to_pylist():
        value = "" if row["numeric_value"] is None else f" {row['numeric_value']:.3g}"
        lines.append(f"{row['subject_id']} {row['time'] or 'static'} {row['code']}{value}")
    return sorted(lines, key=lambda line: line.replace("static", "0"))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"form": "parquet", "upper": True},
        {"form": "csv.gz", "version": "5.3", "upper": True, "tabs": ("concept", "measurement")},
    ],
)
def test_a_small_model_becomes_the_same_events_in_every_form(
    cdm, cohort, events_of, monkeypatch, how
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 300)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 1)
    path = cohort("omop", cdm(**how), splits="all:train")
    assert written(events_of(path)) == EXPECTED.splitlines()
    assert len(pq.read_table(path / "metadata" / "rejected.parquet")) == 0


def test_concepts_that_a_data_frame_made_floats_are_the_same_concepts(cdm, cohort, events_of):
    folder = cdm()
    for file in folder.iterdir():
        header, *rows = (line.split(",") for line in file.read_text().splitlines())
        of_concepts = [
            i for i, c in enumerate(header) if c.endswith(("_concept_id", "care_site_id"))
        ]
        for row, i in itertools.product(rows, of_concepts):
            row[i] += ".0" if row[i] else ""
        file.write_text("".join(",".join(row) + "\n" for row in [header, *rows]))
    path = cohort("omop", folder, splits="all:train")
    assert written(events_of(path)) == EXPECTED.splitlines()


def test_ids_that_floats_of_32_bits_rounded_are_refused(cdm, cohort):
    folder = cdm(form="parquet")
    table = pq.read_table(folder / "measurement.parquet")
    at = table.column_names.index("measurement_concept_id")
    ids = pa.array([2e9, 2.1e9, 7.0], pa.float32())
    pq.write_table(
        table.set_column(at, "measurement_concept_id", ids), folder / "measurement.parquet"
    )
    with pytest.raises(InputError, match=r"2 cells of measurement\.parquet, column measurement_c"):
        cohort("omop", folder)


def test_an_operator_makes_a_value_an_inequality(cdm, cohort, events_of):
    row = "person_id=2,measurement_concept_id=3027018,measurement_date=2021-06-01,"
    row += "value_as_number={},operator_concept_id={}"
    cases = [(5.5, 4171756), (6, 4171754), (7, 4172704), (8, 4171755), (9, 4172703), ("", 4171756)]
    path = cohort("omop", cdm({"measurement": [row.format(*case) for case in cases]}))
    found = pq.read_table(path / "metadata" / "inequalities.parquet")["text_value"].to_pylist()
    assert sorted(found) == ["<5.5", "<=6", ">7", ">=8"]
    assert sum(c.startswith("MEASUREMENT") for c in events_of(path)["code"].to_pylist()) == 6
    changes = pq.read_table(path / "metadata" / "changes.parquet").to_pylist()
    assert [c["count"] for c in changes if c["change"] == "inequality"] == [4]


def test_a_quote_in_a_name_of_the_vocabulary_is_a_letter(cdm, cohort, descriptions_of, caplog):
    folder = cdm(tabs=["concept"])
    rows = ['3027018\t"Heart rate', '8483\t5" wide', '320128\t"Essential ""old"" kind"']
    rows += ['4126681\t"Detected" so', "1\ttoo\tmany", '3037110\t"']
    (folder / "concept.csv").write_text("concept_id\tconcept_name\n" + "\n".join(rows) + "\n")
    said = descriptions_of(cohort("omop", folder))
    assert said["MEASUREMENT//3027018//8483"] == '"Heart rate (5" wide)'
    assert said["CONDITION//320128"] == 'Essential "old" kind'
    assert said["MEASUREMENT//3037110//4126681"] == '" ("Detected" so)'
    assert "concept.csv: 1 rows could not be read; their concepts have no names" in caplog.text


def test_codes_have_the_names_of_their_concepts(cdm, cohort, descriptions_of):
    said = descriptions_of(cohort("omop", cdm()))
    assert said["MEASUREMENT//3027018//8483"] == "Heart rate (counts per minute)"
    assert said["MEASUREMENT//3037110//4126681"] == "Fasting glucose (Detected)"
    assert said["HOSPITAL_ADMISSION//9201"] == "Inpatient Visit"
    assert said["CONDITION//320128"] == "Essential hypertension"
    assert said["GENDER//F"] == "Female"
    assert said["PROCEDURE//4230167"] is None


def test_labels_are_there_with_the_cohort(cdm, cohort, labels_of):
    at_48_hours = [("1", "2020-03-03 08:00:00"), ("2", "2021-06-03 10:00:00")]
    assert labels_of(cohort("omop", cdm())) == {
        "mortality": [(*at_48_hours[0], "False"), (*at_48_hours[1], "True")],
        "length_of_stay_7d": [(*at_48_hours[0], "False"), (*at_48_hours[1], "False")],
        "readmission_30d": [
            ("1", "2020-03-05 12:00:00", "True"),
            ("1", "2020-03-22 23:59:59", "False"),
        ],
    }


def test_persons_and_concepts_alone_are_enough_and_nothing_else_is(cdm, cohort, events_of, caplog):
    needed = ("person", "concept")
    folder = cdm(without=[name for name in omop.SMALL if name not in needed])
    assert len(events_of(cohort("omop", folder))) == 8
    (note,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert "visit_occurrence" in note
    for name in needed:
        message = rf"no {name}\.csv, {name}\.csv\.gz or {name}\.parquet; give the folder"
        with pytest.raises(InputError, match=message):
            cohort("omop", cdm(name=name, without=[name]))


def test_a_model_without_concepts_or_persons_is_refused(cdm, cohort):
    with pytest.raises(InputError, match=r"concept\.csv: no concept in it; export the vocabulary"):
        cohort("omop", cdm({"concept": []}))
    with pytest.raises(InputError, match=r"person\.csv: no person in it"):
        cohort("omop", cdm({"person": []}, "b"))


def test_a_missing_column_is_named_and_one_that_may_be_missing_is_not(cdm, cohort, events_of):
    path = cdm() / "measurement.csv"
    whole = path.read_text()
    path.write_text(whole.replace("measurement_concept_id", "concept"))
    with pytest.raises(InputError, match=r"measurement\.csv: no column measurement_concept_id; it"):
        cohort("omop", path.parent)
    path.write_text(whole.replace("measurement_datetime", "clock"))
    lines = written(events_of(cohort("omop", path.parent, splits="all:train")))
    assert "2 2021-06-01 23:59:59 MEASUREMENT//3027018//8483 88" in lines


def test_bad_rows_are_quarantined_with_their_reason(cdm, cohort):
    tables = {
        "measurement": [
            "person_id=9,measurement_concept_id=1,measurement_date=2020-01-01",
            "person_id=1,measurement_concept_id=1,measurement_date=soon",
            "person_id=1,measurement_concept_id=1",
        ],
        "visit_occurrence": [visit(9, 91, "2020-01-01", "2020-01-02")],
        "person": [*omop.SMALL["person"], "person_id=1,gender_concept_id=8507"],
    }
    path = cohort("omop", cdm(tables), max_rejected=1)
    table = pq.read_table(path / "metadata" / "rejected.parquet").to_pylist()
    assert sorted((r["file"], r["line"], r["reason"]) for r in table) == [
        ("measurement.csv", 2, "person_id 9 is not in person"),
        ("measurement.csv", 3, "measurement_date 'soon' is not a time"),
        ("measurement.csv", 4, "measurement_date is blank"),
        ("person.csv", 5, "person_id again"),
        ("visit_occurrence.csv", 2, "person_id 9 is not in person"),
    ]


def test_a_damaged_parquet_table_is_refused_in_one_line(cdm, cohort):
    path = cdm(form="parquet") / "measurement.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="measurement"):
        cohort("omop", path.parent)


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_ranges_of_large_tables_give_the_bytes_of_the_whole(cdm, cohort, monkeypatch, form):
    """Several values at one time, a bad row in a later range, and concepts read once."""
    rows = [
        f"person_id={1 + i % 2},measurement_concept_id={3027018 + i % 2},"
        f"measurement_date=2021-06-0{1 + i % 3},value_as_number={i}"
        for i in range(2000)
    ]
    rows[1900] = rows[1900].replace("person_id=1", "person_id=9")
    drugs = omop.SMALL["drug_exposure"] * 500  # two events of one time a row
    folder = cdm({"measurement": rows, "drug_exposure": drugs})
    if form == "parquet":
        folder = cdm({"measurement": rows, "drug_exposure": drugs}, "columns", form="parquet")
        for name in ("measurement", "drug_exposure"):
            table = pq.read_table(folder / f"{name}.parquet")
            pq.write_table(table, folder / f"{name}.parquet", row_group_size=300)
    read = []

    def count(root, name, *more):
        read.append(name)
        return blocks.read_blocks(root, name, *more)

    monkeypatch.setattr(reader, "read_blocks", count)
    whole = cohort("omop", folder, name=f"whole-{form}")
    monkeypatch.setattr(parquet_files, "CHUNK_ROWS", 600)
    for name, value in (("RANGE_BYTES", 20_000), ("SCAN_BYTES", 3_000)):
        monkeypatch.setattr(csv_ranges, name, value)
    counts = Counter(unit.kind for unit in reader.units(folder, OmopOptions()))
    assert counts["measurement"] > 2
    assert counts["drug_exposure"] == 1
    read.clear()
    parts = cohort("omop", folder, name=f"parts-{form}")
    assert files_of(parts) == files_of(whole)
    (bad,) = pq.read_table(parts / "metadata" / "rejected.parquet").to_pylist()
    assert (bad["line"], bad["reason"]) == (1902, "person_id 9 is not in person")
    records = [json.loads((path / RECORD).read_text()) for path in (parts, whole)]
    assert records[0]["summary"] == records[1]["summary"]
    # Once to see that there are concepts, and once for their names.
    assert read.count(f"concept.{form}") == 2


def schemas(database, *names):
    """Some tables of the small model, the vocabulary in a schema of its own; return its address."""
    tables = {name: table for name, table in omop.arrow().items() if not names or name in names}
    database.fill({"concept": tables.pop("concept")}, "vocab")
    database.fill(tables, "cdm")
    return f"{database.address}{'&' if '?' in database.address else '?'}schema=cdm,vocab"


def files_of(path):
    found = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    found.pop("metadata/ingest.json")  # its fingerprint is of the input
    return found


def test_a_database_becomes_the_cohort_that_its_files_become(cdm, cohort, database):
    address = schemas(database)
    one, other = cohort("omop", cdm()), cohort("omop", address, name="of-database")
    assert files_of(other) == files_of(one)
    assert cohort("omop", address, name="of-database") == other  # nothing to do
    database.run("UPDATE cdm.death SET death_date = '2021-06-03'")
    with pytest.raises(InputError, match="holds another input or other options"):
        cohort("omop", address, name="of-database")


def test_a_database_without_the_tables_or_their_columns_is_refused(database, cohort):
    address = schemas(database, "person", "concept", "measurement")
    alone = address.removesuffix(",vocab")
    with pytest.raises(InputError, match=r"no table concept is found; say where .* \?schema="):
        cohort("omop", alone)
    database.run("ALTER TABLE cdm.measurement RENAME COLUMN measurement_date TO day")
    with pytest.raises(InputError, match="table measurement: no column measurement_date; it has"):
        cohort("omop", address)


def test_rows_of_a_database_are_quarantined_by_table_and_place(database, cohort):
    address = schemas(database, "person", "concept", "observation")
    database.run("UPDATE cdm.observation SET person_id = 9")
    path = cohort("omop", address, max_rejected=1)
    (row,) = pq.read_table(path / "metadata" / "rejected.parquet").to_pylist()
    assert row == {"file": "observation", "line": 2, "reason": "person_id 9 is not in person"}


def test_another_source_reads_no_database(tmp_path, cohort):
    path = tmp_path / "cdm.duckdb"
    path.touch()
    with pytest.raises(InputError, match=r"cdm\.duckdb: --source eicu reads no database; give"):
        cohort("eicu", str(path))


MEASURED = "person_id=2,measurement_concept_id=1,measurement_date=2021-06-02,measurement_datetime="


def test_times_of_all_tables_have_a_zone_or_none_has(cdm, cohort, events_of):
    folder = cdm({"measurement": [f"{MEASURED}2021-06-02T09:00:00Z"]})
    with pytest.raises(
        InputError,
        match=r"measurement\.csv, column measurement_datetime: times with a zone, but none in ",
    ):
        cohort("omop", folder)
    for path in folder.glob("*.csv"):
        path.write_text(re.sub(r"(\d\d:\d\d:\d\d)(?!Z)", r"\1Z", path.read_text()))
    found = written(events_of(cohort("omop", folder, splits="all:train")))
    expected = [line for line in EXPECTED.splitlines() if "MEASUREMENT" not in line]
    assert [line for line in found if "MEASUREMENT" not in line] == expected
    assert "2 2021-06-02 09:00:00 MEASUREMENT//1//UNK" in found


def test_times_with_an_offset_beside_dates_of_nobody_knows_where_are_refused(cdm, cohort):
    folder = cdm({"measurement": [f"{MEASURED}2021-06-02T00:00:00+02:00"]})
    with pytest.raises(InputError, match=r"column measurement_datetime: times with an offset from"):
        cohort("omop", folder)


def test_a_visit_without_an_end_tells_no_discharge_no_diagnosis_and_no_label_of_it(
    cdm, tmp_path, events_of
):
    condition = "condition_concept_id=320128,condition_start_date=2020-03-01"
    folder = cdm(
        {
            "visit_occurrence": [
                visit(1, 11, "2020-01-01 08:00:00", "2020-01-20 09:00:00"),
                visit(1, 12, "2020-02-01 08:00:00", ""),
                visit(2, 21, "2020-03-01 08:00:00", ""),
                visit(3, 31, "2020-03-01 08:00:00", "2020-02-27", discharged_to_concept_id=4216643),
            ],
            "visit_detail": [
                "person_id=2,visit_detail_concept_id=32037,visit_occurrence_id=21,"
                "visit_detail_start_date=2020-03-02,visit_detail_end_date=2020-03-01"
            ],
            "condition_occurrence": [
                f"person_id=2,visit_occurrence_id=21,{condition}",
                f"person_id=3,visit_occurrence_id=31,{condition}",
                f"person_id=2,{condition}",
            ],
            "death": [],
        }
    )
    summary = ingest("omop", folder, tmp_path / "c", splits="all:train", cpus=1)
    lines = str(summary).splitlines()
    assert "visits without an end: 3, no discharge, and no label that needs it" in lines
    (told,) = [line for line in lines if line.startswith("diagnoses of visits without an end: 2")]
    assert "left out" in told
    found = written(events_of(tmp_path / "c"))
    ends = [line for line in found if "DISCHARGE" in line or "CONDITION" in line]
    assert ends == [
        "1 2020-01-20 09:00:00 HOSPITAL_DISCHARGE//UNK",
        "2 2020-03-01 23:59:59 CONDITION//320128",
    ]
    assert {
        path.stem: [tuple(map(str, row.values())) for row in pq.read_table(path).to_pylist()]
        for path in (tmp_path / "c/labels").iterdir()
    } == {
        "mortality": [("1", "2020-01-03 08:00:00", "False")],
        "length_of_stay_7d": [("1", "2020-01-03 08:00:00", "True")],
        "readmission_30d": [("1", "2020-01-20 09:00:00", "True")],
    }
