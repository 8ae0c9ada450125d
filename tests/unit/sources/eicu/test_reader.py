from collections import Counter

import pyarrow.parquet as pq
import pytest
from made_up import eicu

from ehr_ray.errors import InputError
from ehr_ray.events.schema import SPLITS
from ehr_ray.runtime.data.dataset import named_origin
from ehr_ray.sources.eicu.options import EicuOptions
from ehr_ray.sources.eicu.reader import units
from ehr_ray.sources.eicu.tables import BY_NAME
from ehr_ray.sources.parsing import blocks, csv_ranges, event_rows
from ehr_ray.sources.parsing.identifiers import subject_id

EXPECTED = """\
P-1 static AGE 60
P-1 static ETHNICITY//Asian
P-1 static GENDER//F
P-1 static HOSPITAL_BEDS//100 - 249
P-1 static HOSPITAL_REGION//Midwest
P-1 static HOSPITAL_REGION//South
P-1 static HOSPITAL_TEACHING//f
P-1 static HOSPITAL_TEACHING//t
P-1 static HOSPITAL//58
P-1 static HOSPITAL//60
P-1 2014-01-01 20:00 HOSPITAL_ADMISSION//Floor
P-1 2014-01-01 21:00 ADMISSION_WEIGHT 70.5
P-1 2014-01-01 21:00 UNIT_ADMISSION//MICU//Floor
P-1 2014-01-01 21:05 VITAL//heartrate 88
P-1 2014-01-01 21:05 VITAL//sao2 97
P-1 2014-01-01 21:10 MEDICATION//START//ASPIRIN
P-1 2014-01-01 21:20 MEDICATION//START//4480
P-1 2014-01-01 21:20 MEDICATION//STOP//4480
P-1 2014-01-01 21:30 NURSE_CHARTING//Temperature//Temperature (F) 98.6
P-1 2014-01-01 21:40 RESPIRATORY//FiO2 40
P-1 2014-01-01 22:00 LAB//potassium//mmol/L 4.1
P-1 2014-01-01 22:40 CULTURE//Sputum
P-1 2014-01-01 23:00 INTAKE_OUTPUT//Urine 200
P-1 2014-01-02 00:20 CULTURE//Blood
P-1 2014-01-02 21:00 MEDICATION//STOP//ASPIRIN
P-1 2014-01-04 21:00 DISCHARGE_WEIGHT 69
P-1 2014-01-04 21:00 ORGANISM//Sputum//Klebsiella
P-1 2014-01-04 21:00 SENSITIVITY//Klebsiella//ceftriaxone//Sensitive
P-1 2014-01-04 21:00 UNIT_DISCHARGE//Floor
P-1 2014-01-05 21:00 UNIT_ADMISSION//MICU//Floor
P-1 2014-01-05 22:00 UNIT_DISCHARGE//Floor
P-1 2014-01-08 21:00 HOSPITAL_DISCHARGE//Home
P-1 2015-01-01 20:00 HOSPITAL_ADMISSION//Floor
P-1 2015-01-01 20:00 VITAL//respiration 18
P-1 2015-01-01 21:00 UNIT_ADMISSION//MICU//Floor
P-1 2015-01-04 21:00 UNIT_DISCHARGE//Floor
P-1 2015-01-08 21:00 HOSPITAL_DISCHARGE//Home
P-2 static AGE 90
P-2 static ETHNICITY//Asian
P-2 static GENDER//M
P-2 static HOSPITAL_BEDS//100 - 249
P-2 static HOSPITAL_REGION//Midwest
P-2 static HOSPITAL_TEACHING//f
P-2 static HOSPITAL//58
P-2 2014-01-01 20:00 HOSPITAL_ADMISSION//Floor
P-2 2014-01-01 21:00 UNIT_ADMISSION//MICU//Floor
P-2 2014-01-01 21:10 HISTORY//notes/Asthma
P-2 2014-01-01 21:10 VITAL//noninvasivesystolic 120
P-2 2014-01-01 21:15 INFUSION//Levophed (mcg/min) 12
P-2 2014-01-01 22:01 LAB//pH//UNK 7.2
P-2 2014-01-02 08:25 DIAGNOSIS//renal|AKI
P-2 2014-01-03 06:20 HOSPITAL_DISCHARGE//Home
P-2 2014-01-03 06:20 MEDS_DEATH
P-2 2014-01-03 06:20 UNIT_DISCHARGE//Death
P-3 static ETHNICITY//Asian
P-3 static GENDER//UNK
P-3 static HOSPITAL_REGION//South
P-3 static HOSPITAL_TEACHING//t
P-3 static HOSPITAL//60
P-3 2014-01-01 20:00 HOSPITAL_ADMISSION//Floor
P-3 2014-01-01 21:00 UNIT_ADMISSION//MICU//Floor
P-3 2014-01-04 21:00 UNIT_DISCHARGE//Floor
P-3 2014-01-08 21:00 HOSPITAL_DISCHARGE//Home
"""
"""A pulse of 900 is out of range, words of a chart are left out, a cancelled order too."""
NAMES = {subject_id(name): name for name in ("P-1", "P-2", "P-3")}


def written(table):
    lines = []
    for row in table.to_pylist():
        value = "" if row["numeric_value"] is None else f" {row['numeric_value']:.3g}"
        time = "static" if row["time"] is None else f"{row['time']:%Y-%m-%d %H:%M}"
        lines.append(f"{NAMES[row['subject_id']]} {time} {row['code']}{value}")
    return sorted(lines, key=lambda line: line.replace("static", "0"))


def test_a_small_hospital_becomes_events(folder, cohort, events_of):
    path = cohort("eicu", folder(), splits="all:train")
    found = written(events_of(path))
    assert found == sorted(EXPECTED.splitlines(), key=lambda line: line.replace("static", "0"))
    assert len(pq.read_table(path / "metadata" / "rejected.parquet")) == 0
    assert named_origin(path) == ("UNIT_ADMISSION",)
    names = pq.read_table(path / "metadata" / "subject_ids.parquet").to_pylist()
    assert {row["subject_id"]: row["name"] for row in names} == NAMES


@pytest.mark.parametrize("how", [{"gz": True}, {"upper": True}])
def test_compression_and_capitals_and_small_blocks_give_the_same_events(
    folder, cohort, events_of, monkeypatch, how
):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 700)
    monkeypatch.setattr(event_rows, "CHUNK_ROWS", 1)
    path = cohort("eicu", folder(**how), splits="all:train")
    assert len(events_of(path)) == len(EXPECTED.splitlines())


def test_ranges_of_large_tables_give_the_bytes_of_the_whole(folder, cohort, monkeypatch):
    """A table with several events a row stays whole, whatever its size."""
    monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 8_000)
    monkeypatch.setattr(csv_ranges, "SCAN_BYTES", 3_000)
    many = {name: eicu.SMALL[name] * 400 for name in ("lab", "vitalPeriodic")}
    path = folder(eicu.SMALL | many)
    counts = Counter(unit.kind for unit in units(path, EicuOptions()))
    assert counts["lab"] > 2
    assert counts["vitalPeriodic"] == 1
    made = []
    for name in ("cut", "whole"):
        made.append(cohort("eicu", path, name=name))
        monkeypatch.setattr(csv_ranges, "RANGE_BYTES", 1 << 30)
    files = [
        p.relative_to(made[0])
        for p in made[0].rglob("*")
        if p.is_file() and p.name != "ingest.json"
    ]
    assert all((made[0] / f).read_bytes() == (made[1] / f).read_bytes() for f in files)


def test_the_table_of_stays_alone_is_enough_and_the_others_are_named(folder, cohort, caplog):
    path = cohort("eicu", folder(without=[name for name in eicu.SMALL if name != "patient"]))
    assert len(list((path / "labels").iterdir())) == 4
    (note,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert note.endswith(f"customLab, nurseCharting and {len(BY_NAME) - 5} more, which -v names")


def test_without_stays_or_in_a_file_there_is_nothing_to_read(folder, cohort):
    with pytest.raises(InputError, match=r"no patient\.csv or patient\.csv\.gz; give the folder"):
        cohort("eicu", folder(without=["patient"]))
    with pytest.raises(InputError, match="not a folder"):
        cohort("eicu", folder() / "patient.csv")
    with pytest.raises(InputError, match=r"patient\.csv: no stay in it"):
        cohort("eicu", folder({"patient": []}))


def test_a_missing_column_is_named(folder, cohort):
    path = folder() / "lab.csv"
    path.write_text(path.read_text().replace("labresultoffset", "when"))
    with pytest.raises(InputError, match=r"lab\.csv: no column labresultoffset; it has labid"):
        cohort("eicu", path.parent)


def test_an_empty_table_gives_nothing(folder, cohort, events_of):
    path = cohort("eicu", folder({"lab": []}), splits="all:train")
    assert not any("LAB//" in line for line in written(events_of(path)))


def test_bad_rows_are_quarantined_with_their_reason(folder, cohort):
    tables = {
        "lab": [
            "patientunitstayid=99,labresultoffset=60,labname=potassium,labresult=4",
            "patientunitstayid=11,labresultoffset=soon,labname=potassium,labresult=4",
            "patientunitstayid=11,labresultoffset=9e30,labname=potassium,labresult=4",
            "patientunitstayid=11,labresultoffset=60,labresult=4",
        ],
        "patient": [*eicu.SMALL["patient"], eicu.stay(31, "P-4"), eicu.stay(41, "P-4", year=14)],
    }
    path = cohort("eicu", folder(tables), max_rejected=1)
    table = pq.read_table(path / "metadata" / "rejected.parquet").to_pylist()
    assert sorted((r["file"], r["line"], r["reason"]) for r in table) == [
        ("lab.csv", 2, "patientunitstayid 99 is not in patient"),
        ("lab.csv", 3, "labresultoffset 'soon' is not a finite number"),
        ("lab.csv", 4, "an offset above a century"),
        ("lab.csv", 5, "labname is blank"),
        ("patient.csv", 7, "patientunitstayid again"),
        ("patient.csv", 8, "hospitaldischargeyear is no year of our time"),
    ]


def test_hospitals_that_share_a_patient_come_into_one_split(folder, cohort, events_of):
    stays = [eicu.stay(number, f"Q-{number}", hospital=number % 7) for number in range(1, 60)] + [
        eicu.stay(100, "Q-1", hospital=2, year=2015)
    ]
    path = cohort("eicu", folder({"patient": stays}), splits="0.5,0.2,0.3", split_by="HOSPITAL")
    where = {}
    for split in SPLITS:
        for row in events_of(path, split).to_pylist():
            if row["code"].startswith("HOSPITAL//"):
                where.setdefault(row["code"], set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())
    assert where["HOSPITAL//1"] == where["HOSPITAL//2"]
    assert set.union(*where.values()) == set(SPLITS)


def test_real_tables_become_a_cohort_of_all_patients_and_hospitals(
    shared, cohort, events_of, tmp_path
):
    folder = tmp_path / "eicu"
    folder.mkdir()
    for name in ("patient", "hospital", "diagnosis", "allergy", "pastHistory", "microLab"):
        file = f"{name}.csv.gz"
        (folder / file).symlink_to(shared("eicu_demo") / "csv" / file)
    path = cohort("eicu", folder)
    events = events_of(path)
    kinds = [code.split("//")[0] for code in events["code"].to_pylist()]
    assert len(pq.read_table(path / "metadata" / "subject_splits.parquet")) == 1043
    assert kinds.count("UNIT_ADMISSION") == 1409
    assert kinds.count("DIAGNOSIS") == 13_796
    assert kinds.count("MEDS_DEATH") == 98
    codes = events["code"].unique().to_pylist()
    assert len([code for code in codes if code.startswith("HOSPITAL//")]) == 105
