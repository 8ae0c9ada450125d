import dataclasses
import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from made_up import mimic_iv

from ehr_ray.errors import InputError, RunError
from ehr_ray.events.schema import is_origin
from ehr_ray.sources.building import staging
from ehr_ray.sources.building.cohort import RECORD
from ehr_ray.sources.mimic_iv import reader
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.mimic_iv.reader import read, units
from ehr_ray.sources.parsing import blocks, csv_ranges, event_rows
from ehr_ray.sources.source import get_source

EXPECTED = """\
1 static AGE 61
1 static GENDER//F
1 2090-01-01 00:00:00 MEDS_BIRTH
1 2151-01-01 05:00:00 ED_REGISTRATION
1 2151-01-01 08:00:00 HOSPITAL_ADMISSION//URGENT//CLINIC REFERRAL
1 2151-01-01 09:00:00 ED_OUT
1 2151-01-01 09:00:00 TRANSFER_TO//admit//Medicine
1 2151-01-01 12:00:00 MEDICATION//START//Heparin
1 2151-01-02 06:00:00 LAB//50880//UNK
1 2151-01-02 06:00:00 LAB//50912//mg/dL 1.2
1 2151-01-02 23:59:59 PROCEDURE//ICD//9//3961
1 2151-01-03 12:00:00 MEDICATION//STOP//Heparin
1 2151-01-05 12:00:00 HOSPITAL_DISCHARGE//HOME
1 2151-01-05 12:00:00 TRANSFER_TO//discharge//UNK
1 2151-01-05 12:00:01 DIAGNOSIS//ICD//9//4019
1 2151-01-20 10:00:00 HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM
1 2151-01-29 10:00:00 HOSPITAL_DISCHARGE//UNK
1 2151-01-29 10:00:01 DIAGNOSIS//ICD//10//E785
2 static AGE 41
2 static GENDER//M
2 2080-01-01 00:00:00 MEDS_BIRTH
2 2121-01-10 00:00:00 HOSPITAL_ADMISSION//URGENT//UNK
2 2121-01-11 03:00:00 ICU_ADMISSION//Neuro Stepdown
2 2121-01-11 04:00:00 LAB//220045//bpm 88
2 2121-01-11 05:00:00 LAB//220739//UNK 4
2 2121-01-11 05:00:00 PROCEDURE//START//225792
2 2121-01-11 06:00:00 INFUSION_START//221906//mcg/kg/min 0.2
2 2121-01-11 06:30:00 INFUSION_START//225798//UNK
2 2121-01-11 06:31:00 INFUSION_END//225798//dose 1
2 2121-01-11 07:00:00 SUBJECT_FLUID_OUTPUT//226559//ml 120
2 2121-01-11 08:00:00 INFUSION_END//221906//mg 2.4
2 2121-01-11 09:00:00 PROCEDURE//END//225792
2 2121-01-12 04:00:00 ICU_DISCHARGE//MICU
2 2121-01-20 15:30:00 MEDS_DEATH
2 2121-01-20 16:00:00 HOSPITAL_DISCHARGE//DIED
2 2121-01-20 16:00:01 DIAGNOSIS//ICD//9//0389
2 2121-01-20 16:00:01 PROCEDURE//ICD//10//5A1955Z
"""
OPTIONAL = [
    "hosp/transfers",
    "hosp/labevents",
    "hosp/diagnoses_icd",
    "hosp/procedures_icd",
    "hosp/prescriptions",
    "hosp/d_labitems",
    "hosp/d_icd_diagnoses",
    "hosp/d_icd_procedures",
    "icu/icustays",
    "icu/chartevents",
    "icu/procedureevents",
    "icu/inputevents",
    "icu/outputevents",
    "icu/d_items",
]


def written(table):
    lines = []
    for row in table.to_pylist():
        value = "" if row["numeric_value"] is None else f" {row['numeric_value']:.3g}"
        lines.append(f"{row['subject_id']} {row['time'] or 'static'} {row['code']}{value}")
    # Within a subject and time by code: which table comes first there means nothing.
    return sorted(lines, key=lambda line: line.replace("static", "0"))


def contents(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    # The record of the ingest names its input by size and time.
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name != "ingest.json"}


def rejected(path):
    table = pq.read_table(path / "metadata" / "rejected.parquet")
    return [tuple(row.values()) for row in table.to_pylist()]


@pytest.fixture
def mimic(tmp_path, write_mimic):
    return lambda name="mimic", *args, **kwargs: write_mimic(tmp_path / name, *args, **kwargs)


def test_a_small_hospital_becomes_events(mimic, cohort, events_of):
    path = cohort("mimic-iv", mimic(), splits="all:train")
    assert written(events_of(path)) == EXPECTED.splitlines()
    assert rejected(path) == []


@pytest.mark.parametrize(("version", "gz"), [("2.0", False), ("2.0", True), ("3.1", True)])
def test_versions_and_compression_give_the_same_bytes(mimic, cohort, version, gz):
    plain = cohort("mimic-iv", mimic(), name="plain")
    other = cohort("mimic-iv", mimic("other", version=version, gz=gz), name="other")
    assert contents(other) == contents(plain)


def test_blocks_and_chunks_of_any_size_give_the_same_bytes(mimic, cohort, monkeypatch):
    whole = cohort("mimic-iv", mimic(), name="whole")
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 700)
    monkeypatch.setattr(event_rows, "CHUNK_ROWS", 1)
    assert contents(cohort("mimic-iv", mimic(), name="pieces")) == contents(whole)


@pytest.fixture
def charted(mimic, monkeypatch):
    """A hospital with many charted values, several of one subject at a time, and small ranges."""
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 8_000)
    monkeypatch.setattr(csv_ranges, "SCAN_BYTES", 3_000)
    rows = [
        f"subject_id={1 + i % 2},charttime=2151-01-0{1 + i % 5} 0{i % 7}:00:00,"
        f"itemid={220045 + i % 3},valuenum={i},valueuom=bpm"
        for i in range(3000)
    ]
    rows[700] = rows[700].replace("charttime=2151", "charttime=never")
    rows[2100] = "subject_id=2,charttime=2151-01-02 00:00:00,itemid=220045,value=>100"
    rows[2900] = rows[2900].replace("subject_id=1", "subject_id=99")
    more = [f"1,11,{i},4019,9" for i in range(2000)]
    tables = dict(mimic_iv.SMALL, **{"icu/chartevents": rows, "hosp/diagnoses_icd": more})
    tables["hosp/transfers"] = tables["hosp/transfers"] * 800  # two events of one time a row
    return mimic("charted", tables)


def test_ranges_of_large_tables_give_the_bytes_of_the_whole(charted, cohort, monkeypatch):
    cut = units(charted, MimicIvOptions())
    counts = Counter(unit.kind for unit in cut)
    assert min(counts["icu/chartevents"], counts["hosp/diagnoses_icd"]) > 2
    parts = cohort("mimic-iv", charted, name="cut")
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 1 << 30)
    assert len(units(charted, MimicIvOptions())) < len(cut)
    whole = cohort("mimic-iv", charted, name="whole")
    assert contents(parts) == contents(whole)
    assert [line for _, line, _ in rejected(parts)] == [702, 2902]
    records = [json.loads((path / RECORD).read_text()) for path in (parts, whole)]
    assert records[0]["summary"] == records[1]["summary"]


def test_large_compressed_tables_are_marked_to_be_unpacked(charted):
    for name in ("icu/chartevents.csv", "hosp/transfers.csv"):
        packed = gzip.compress((charted / name).read_bytes())
        (charted / name).unlink()
        (charted / f"{name}.gz").write_bytes(packed)
    marked = {unit.files[0]: unit.packed for unit in units(charted, MimicIvOptions()) if unit.files}
    assert marked["icu/chartevents.csv.gz"] == (",", "utf-8")
    assert marked["hosp/transfers.csv.gz"] is None  # two events a row
    assert marked["hosp/diagnoses_icd.csv"] is None


def test_a_killed_ingest_goes_on_within_a_table(charted, cohort, monkeypatch):
    source, done, dies = get_source("mimic-iv"), [], 3

    def dying(unit, options):
        yield from read(unit, options)
        if unit.kind == "icu/chartevents":
            done.append(unit.start)
            if len(done) == dies:
                raise OSError("killed")

    monkeypatch.setattr(staging, "get_source", lambda _: dataclasses.replace(source, read=dying))
    with pytest.raises(RunError, match="killed"):
        cohort("mimic-iv", charted)
    kept, dies = done[:2], 1000
    done.clear()
    path = cohort("mimic-iv", charted)
    assert done
    assert not set(kept) & set(done)
    assert contents(path) == contents(cohort("mimic-iv", charted, name="undisturbed"))


def test_patients_are_read_once_for_all_units_of_a_process(charted, monkeypatch):
    calls, load = [], reader.load
    monkeypatch.setattr(reader, "load", lambda *a: calls.append(a) or load(*a))
    options = MimicIvOptions()
    for unit in units(charted, options):
        for _ in read(unit, options):
            pass
    assert len(calls) == 1
    patients = charted / "hosp" / "patients.csv"
    patients.write_text(patients.read_text() + "3,F,60,2150,2011 - 2013,\n")
    list(read(units(charted, options)[0], options))
    assert len(calls) == 2


def test_codes_are_described_by_the_dictionaries(mimic, cohort, descriptions_of):
    said = descriptions_of(cohort("mimic-iv", mimic()))
    assert said["LAB//220045//bpm"] == "Heart Rate (bpm)"
    assert said["LAB//50912//mg/dL"] == "Creatinine, Blood (mg/dL)"
    assert said["SUBJECT_FLUID_OUTPUT//226559//ml"] == "Foley (ml)"
    assert said["PROCEDURE//START//225792"] == "Invasive Ventilation"
    assert said["DIAGNOSIS//ICD//10//E785"] == "Hyperlipidemia, unspecified"
    assert said["PROCEDURE//ICD//9//3961"] == "Extracorporeal circulation"
    assert said["GENDER//F"] == "Female"
    assert said["MEDICATION//START//Heparin"] is None


def test_labels_are_there_with_the_cohort(mimic, cohort, labels_of):
    at_48_hours = [("1", "2151-01-03 08:00:00"), ("2", "2121-01-12 00:00:00")]
    assert labels_of(cohort("mimic-iv", mimic())) == {
        "mortality": [(*at_48_hours[0], "False"), (*at_48_hours[1], "True")],
        "length_of_stay_7d": [(*at_48_hours[0], "False"), (*at_48_hours[1], "True")],
        "readmission_30d": [
            ("1", "2151-01-05 12:00:00", "True"),
            ("1", "2151-01-29 10:00:00", "False"),
        ],
    }


@pytest.mark.parametrize("table", OPTIONAL)
def test_a_table_that_is_missing_is_left_out_with_a_note(mimic, cohort, events_of, caplog, table):
    path = cohort("mimic-iv", mimic(without=[table]), splits="all:train")
    found = written(events_of(path))
    assert set(found) <= set(EXPECTED.splitlines())
    assert (len(found) < len(EXPECTED.splitlines())) == ("/d_" not in table)
    (note,) = [record.getMessage() for record in caplog.records]
    assert note.endswith(f"not there, left out: {table}")


def test_patients_and_admissions_alone_are_enough(mimic, cohort, events_of, caplog):
    path = cohort("mimic-iv", mimic(without=OPTIONAL))
    assert len(events_of(path)) == 15
    assert len(caplog.records) == 1
    assert len(list((path / "labels").iterdir())) == 3


def test_nothing_is_said_when_all_is_there(mimic, cohort, caplog):
    cohort("mimic-iv", mimic())
    assert caplog.records == []


@pytest.mark.parametrize("table", ["hosp/patients", "hosp/admissions"])
def test_a_table_that_nothing_can_do_without_is_named(mimic, cohort, table):
    message = rf"--input .*/mimic: no {table}\.csv or {table}\.csv\.gz; give the folder"
    with pytest.raises(InputError, match=message):
        cohort("mimic-iv", mimic(without=[table]))


def test_icu_stays_are_needed_where_labels_start_there(mimic, cohort):
    folder = mimic(without=["icu/icustays"])
    with pytest.raises(InputError, match=r"no icu/icustays\.csv"):
        cohort("mimic-iv", folder, label_start="icu")
    found = pq.read_table(
        cohort("mimic-iv", mimic("whole"), label_start="icu", label_hours=24)
        / "labels/mortality.parquet"
    )
    assert [str(time) for time in found["prediction_time"].to_pylist()] == ["2121-01-12 03:00:00"]


def test_bad_rows_are_quarantined_with_file_line_and_reason(mimic, cohort, events_of):
    tables = {
        "hosp/patients": ["1,F,60,2150,2011 - 2013,", "2,M,40,2120,2020 - 2022,", "x,F,1,2150,,"],
        "hosp/admissions": [
            "subject_id=1,hadm_id=11,admittime=2151-01-01,dischtime=2151-01-05",
            "subject_id=2,hadm_id=21,admittime=never,dischtime=2151-01-05",
            "subject_id=9,hadm_id=91,admittime=2151-01-01,dischtime=2151-01-05",
        ],
        "hosp/diagnoses_icd": ["1,11,1,4019,9", "1,11,2,,9"],
        "icu/chartevents": [
            "subject_id=1,charttime=2151-01-02 04:00:00,itemid=220045,valuenum=88",
            "subject_id=1,charttime=2151-01-02 04:00:00,itemid=220045,valuenum=high",
            "1,2",
        ],
    }
    rest = [name for name in OPTIONAL if name not in tables]
    path = cohort("mimic-iv", mimic("m", tables, without=rest, gz=True), max_rejected=1)
    assert sorted(rejected(path)) == [
        ("hosp/admissions.csv.gz", 3, "admittime 'never' is not a time"),
        ("hosp/admissions.csv.gz", 4, "subject_id 9 is not in hosp/patients"),
        ("hosp/diagnoses_icd.csv.gz", 3, "icd_code is blank"),
        ("hosp/patients.csv.gz", 4, "subject_id 'x' is not a whole number"),
        ("icu/chartevents.csv.gz", 4, "2 cells where the header has 11: '1,2'"),
    ]
    # Subject 2 is a patient, but without a readable admission its history is empty.
    assert set(events_of(path)["subject_id"].to_pylist()) == {1}


def test_too_many_bad_rows_are_an_error(mimic, cohort):
    with pytest.raises(InputError, match=r"rejected 1 of .*hosp/labevents\.csv:2: itemid is blank"):
        cohort(
            "mimic-iv",
            mimic("m", {"hosp/labevents": ["subject_id=1,charttime=2151-01-02 04:00:00"]}),
        )


def test_a_damaged_table_is_quarantined_whole(mimic, cohort):
    folder = mimic(gz=True)
    path = folder / "icu/chartevents.csv.gz"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"rejected 1 of .* and 1 of 12 files.*chartevents"):
        cohort("mimic-iv", folder)
    ((file, line, reason),) = rejected(cohort("mimic-iv", folder, max_rejected=1))
    assert (file, line) == ("icu/chartevents.csv.gz", None)
    assert reason.startswith("unreadable: ")


def test_a_sample_holds_all_of_its_subjects_and_nothing_of_others(
    mimic, cohort, events_of, monkeypatch
):
    ids = range(1, 61)
    tables = {
        "hosp/patients": [f"{i},F,60,2150,2011 - 2013," for i in ids],
        "hosp/admissions": [
            f"subject_id={i},hadm_id={i},admittime=2150-01-01,dischtime=2150-01-09" for i in ids
        ],
        "icu/chartevents": [
            f"subject_id={i},charttime=2150-01-02,itemid=220045,valuenum={i}" for i in ids
        ],
    }
    rest = [name for name in OPTIONAL if name not in tables]
    folder = mimic("m", tables, without=rest)
    whole = events_of(cohort("mimic-iv", folder, name="whole"))
    path = cohort("mimic-iv", folder, name="sample", sample_frac=0.3)
    sample = events_of(path)
    kept = set(sample["subject_id"].to_pylist())
    assert 8 <= len(kept) <= 28
    assert set(written(sample)) == {line for line in written(whole) if int(line.split()[0]) in kept}
    labelled = pq.read_table(path / "labels/mortality.parquet")["subject_id"].to_pylist()
    assert set(labelled) == kept
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 300)
    again = cohort("mimic-iv", folder, name="again", sample_frac=0.3)
    assert contents(again) == contents(path)
    assert (again / RECORD).read_bytes() == (path / RECORD).read_bytes()


def test_units_are_one_a_table_and_name_what_they_read(mimic):
    found = units(mimic(), MimicIvOptions())
    assert [unit.kind for unit in found][:2] == ["hosp/patients", "hosp/admissions"]
    assert found[-1].kind == "labels"
    assert len(found) == 13
    chart = next(unit for unit in found if unit.kind == "icu/chartevents")
    assert chart.files == ("icu/chartevents.csv",)
    assert chart.uses == ("hosp/patients.csv", "hosp/admissions.csv", "icu/d_items.csv")


def test_values_that_are_no_numbers_or_implausible_lose_no_event_but_their_own(
    mimic, cohort, events_of
):
    rows = [
        f"subject_id=1,charttime=2151-01-02 0{hour}:00:00,itemid={item},valuenum={value},"
        f"valueuom={u}"
        for hour, (item, value, u) in enumerate(
            [
                ("220045", "88", "bpm"),
                ("220045.0", "high", "bpm"),
                ("220045", "900", "bpm"),
                ("223762", "98.6", "°F"),
                ("223762", ">37", "°C"),
                ("220179", "40", "mmHg"),
            ]
        )
    ]
    folder = mimic("m", {"icu/chartevents": rows})
    path = cohort("mimic-iv", folder)
    found = [
        (row["code"], row["numeric_value"])
        for row in events_of(path).to_pylist()
        if row["code"].startswith("LAB//22") and row["subject_id"] == 1
    ]
    assert found == [
        ("LAB//220045//bpm", 88),
        ("LAB//220045//bpm", None),
        ("LAB//223762//°C", pytest.approx(37)),
        ("LAB//223762//°C", 37),
        ("LAB//220179//mmHg", 40),
    ]
    changes = pq.read_table(path / "metadata/changes.parquet").to_pylist()
    assert {(r["code"], r["change"]): r["count"] for r in changes} == {
        ("LAB//220045//bpm", "not a number"): 1,
        ("LAB//220045//bpm", "out of range"): 1,
        ("LAB//223762//°C", "unit converted"): 1,
        ("LAB//223762//°C", "inequality"): 1,
    }
    bounds = pq.read_table(path / "metadata/inequalities.parquet")
    assert bounds["text_value"].to_pylist() == [">37"]
    plain = events_of(cohort("mimic-iv", folder, name="plain", ranges="none", units="none"))
    assert {900.0, float(np.float32(98.6))} <= set(plain["numeric_value"].to_pylist())


def test_a_plain_file_wins_over_a_compressed_one_and_says_so(mimic, write_mimic, caplog):
    folder = mimic(gz=True)
    write_mimic(folder, without=[name for name in OPTIONAL if name != "icu/chartevents"])
    (unit,) = [u for u in units(folder, MimicIvOptions()) if u.kind == "icu/chartevents"]
    assert unit.files == ("icu/chartevents.csv",)
    told = "icu/chartevents.csv is read, icu/chartevents.csv.gz beside it is not"
    assert any(told in record.getMessage() for record in caplog.records)


def test_nothing_of_a_stay_is_coded_before_its_end(mimic, cohort, events_of):
    """Over random stays: no diagnosis between an admission and its discharge."""
    random = np.random.default_rng(0)
    admissions, diagnoses, ends = [], [], {}
    for subject in (1, 2):
        day = np.datetime64("2150-01-01T00:00:00")
        for hadm in range(20):
            day = day + np.timedelta64(int(random.integers(1, 60_000)), "m")
            end = day + np.timedelta64(int(random.integers(1, 20_000)), "m")
            number = subject * 100 + hadm
            ends.setdefault(subject, set()).add(end.item())
            admissions.append(
                f"subject_id={subject},hadm_id={number},admittime={str(day).replace('T', ' ')},"
                f"dischtime={str(end).replace('T', ' ')}"
            )
            diagnoses += [f"{subject},{number},{i},D{i},10" for i in range(3)]
            day = end
    random.shuffle(diagnoses)
    tables = {"hosp/admissions": admissions, "hosp/diagnoses_icd": diagnoses}
    path = cohort("mimic-iv", mimic("m", tables, without=["hosp/procedures_icd"]))
    coded = [row for row in events_of(path).to_pylist() if row["code"].startswith("DIAGNOSIS")]
    assert len(coded) == 120
    second = timedelta(seconds=1)
    assert all(row["time"] - second in ends[row["subject_id"]] for row in coded)


def test_no_billing_code_of_a_stay_is_known_at_its_discharge(mimic, cohort, events_of):
    path = cohort("mimic-iv", mimic())
    answers = pq.read_table(path / "labels/readmission_30d.parquet").to_pylist()
    known = {
        (row["subject_id"], answer["prediction_time"], row["code"])
        for answer in answers
        for row in events_of(path).to_pylist()
        if row["subject_id"] == answer["subject_id"]
        and (row["time"] is None or row["time"] <= answer["prediction_time"])
    }
    first, second = (answer["prediction_time"] for answer in answers)
    coded = {(time, code) for _, time, code in known if "ICD" in code}
    assert (first, "PROCEDURE//ICD//9//3961") in coded  # of a day before
    assert not any("DIAGNOSIS" in code for time, code in coded if time == first)
    assert (second, "DIAGNOSIS//ICD//9//4019") in coded  # of the stay before
    assert (second, "DIAGNOSIS//ICD//10//E785") not in coded


def test_labels_come_before_what_they_ask_about(mimic, cohort, events_of):
    path = cohort("mimic-iv", mimic())
    death = {
        row["subject_id"]: row["time"]
        for row in events_of(path).to_pylist()
        if row["code"] == "MEDS_DEATH"
    }
    origin = {}
    for row in events_of(path).to_pylist():
        if is_origin(row["code"]):
            origin.setdefault(row["subject_id"], row["time"])
    for row in pq.read_table(path / "labels/mortality.parquet").to_pylist():
        assert row["prediction_time"] == origin[row["subject_id"]] + timedelta(hours=48)
        assert not row["boolean_value"] or row["prediction_time"] < death[row["subject_id"]]


def test_chunks_count_rows_and_files_once(mimic):
    folder = mimic()
    chunks = {
        unit.kind: list(read(unit, MimicIvOptions())) for unit in units(folder, MimicIvOptions())
    }
    assert {kind: sum(c.files_read for c in found) for kind, found in chunks.items()} == {
        kind: int(kind != "labels") for kind in chunks
    }
    assert sum(chunk.rows_read for chunk in chunks["icu/inputevents"]) == 3
    assert sum(chunk.rows_read for chunk in chunks["hosp/patients"]) == 2


PEAK = """
import pathlib, resource, sys
from ehr_ray.commands.ingest import ingest
summary = ingest("mimic-iv", pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), cpus=1)
assert summary.rows_read > int(sys.argv[3])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def chart(path, count, per_patient=4000):
    """Write chart entries of 10 items, in order of patient and time."""
    random = np.random.default_rng(0)
    number = np.arange(count)
    minute = (number % per_patient) * 2
    times = np.datetime64("2150-01-02T00:00:00") + minute.astype("timedelta64[m]")
    item = random.integers(0, 10, count)
    columns = {
        "subject_id": number // per_patient + 1,
        "hadm_id": number // per_patient + 1,
        "stay_id": number // per_patient + 1,
        "caregiver_id": random.integers(1, 90_000, count),
        "charttime": pa.array(np.datetime_as_string(times, unit="s")),
        "storetime": pa.array(np.datetime_as_string(times, unit="s")),
        "itemid": item + 220_045,
        "value": np.round(random.normal(90, 12, count), 1),
        "valuenum": np.round(random.normal(90, 12, count), 1),
        "valueuom": pa.array(np.array(["bpm", "mmHg", "%", "", "kg"] * 2)[item]),
        "warning": np.zeros(count, int),
    }
    pa_csv.write_csv(pa.table(columns), path)


@pytest.mark.slow
def test_memory_stays_flat_when_chartevents_grow_sixfold(tmp_path, write_mimic):
    """That rows of the largest table are streamed, not held."""

    def peak(count):
        ids = range(1, count // 4000 + 1)
        tables = {
            "hosp/patients": [f"{i},F,60,2150,2011 - 2013," for i in ids],
            "hosp/admissions": [
                f"subject_id={i},hadm_id={i},admittime=2150-01-01,dischtime=2150-01-09" for i in ids
            ],
        }
        folder = write_mimic(
            tmp_path / f"in{count}", tables, without=[n for n in OPTIONAL if n not in tables]
        )
        (folder / "icu").mkdir()
        chart(folder / "icu/chartevents.csv", count)
        command = [sys.executable, "-c", PEAK, str(folder), str(tmp_path / str(count)), str(count)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
        done = subprocess.run(command, env=environment, check=True, capture_output=True)
        return float(done.stdout)

    assert peak(4_800_000) < 1.3 * peak(800_000)
