from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing import identifiers
from ehr_ray.sources.patient_parquet import PatientParquetOptions, units

ROWS = [("HR", 80.0, 5.0), ("Temp", 36.5, 0.0), ("HR", 90.0, 2880.0)]
EPOCH = datetime(2000, 1, 1)


def minutes(rows):
    return [r["time"] and (r["time"] - EPOCH) / timedelta(minutes=1) for r in rows]


def test_the_seed_layout_gives_its_splits_and_admissions(
    tmp_path, cohort, write_patient, events_of
):
    for i, folder in enumerate(("train", "valid", "test"), start=1):
        write_patient(tmp_path / "in" / folder / f"27636{i}.0.parquet", ROWS)
    path = cohort("patient-parquet", tmp_path / "in")
    splits = pq.read_table(path / "metadata/subject_splits.parquet").to_pydict()
    assert splits == {
        "subject_id": [276361, 276362, 276363],
        "split": ["train", "tuning", "held_out"],
    }
    rows = events_of(path, "train").to_pylist()
    assert [r["code"] for r in rows] == ["ADMISSION", "Temp", "HR", "HR"]
    assert minutes(rows) == [0, 0, 5, 2880]


def test_folders_of_splits_may_have_capitals_and_others_lose_nobody(
    tmp_path, cohort, write_patient
):
    for i, name in enumerate(("train/1.parquet", "Valid/2.PARQUET", "TEST/3.parquet")):
        write_patient(tmp_path / "in" / name, ROWS[i:])
    path = cohort("patient-parquet", tmp_path / "in")
    splits = pq.read_table(path / "metadata/subject_splits.parquet").to_pydict()
    assert splits == {"subject_id": [1, 2, 3], "split": ["train", "tuning", "held_out"]}
    (tmp_path / "in/labels").mkdir()
    pq.write_table(pa.table({"ts_id": [1], "label": [1]}), tmp_path / "in/labels/labels.parquet")
    cohort("patient-parquet", tmp_path / "in", name="labels")
    write_patient(tmp_path / "in/eval/4.parquet", ROWS)
    with pytest.raises(InputError, match=r"--input .*: eval/ has files of patients and is no"):
        cohort("patient-parquet", tmp_path / "in", name="eval")


def test_files_without_split_folders_are_divided_by_hash(tmp_path, cohort, write_patient):
    for i in range(60):
        write_patient(tmp_path / "in" / f"{i}.parquet", ROWS)
    path = cohort("patient-parquet", tmp_path / "in")
    splits = pq.read_table(path / "metadata/subject_splits.parquet")["split"].to_pylist()
    assert len(splits) == 60
    assert 36 < splits.count("train") < 58


def test_names_are_hashed_and_the_mapping_is_kept(tmp_path, cohort, write_patient):
    for name in ("p-a", "p-b", "7"):
        write_patient(tmp_path / "in/train" / f"{name}.parquet", ROWS)
    path = cohort("patient-parquet", tmp_path / "in")
    names = pq.read_table(path / "metadata/subject_ids.parquet").to_pydict()
    assert sorted(names["name"]) == ["p-a", "p-b"]
    assert names["subject_id"] == sorted(identifiers.subject_id(n) for n in names["name"])


def test_two_names_with_one_hash_are_refused(tmp_path, cohort, write_patient, monkeypatch):
    fixed = lambda name: 2**62 + 1  # noqa: E731, ARG005
    monkeypatch.setattr("ehr_ray.sources.patient_parquet.subject_id", fixed)
    for name in ("p-a", "p-b"):
        write_patient(tmp_path / "in/train" / f"{name}.parquet", ROWS)
    with pytest.raises(InputError, match=r"train/p-a.parquet and in train/p-b.parquet"):
        cohort("patient-parquet", tmp_path / "in")


@pytest.mark.parametrize("other", ["valid/1.parquet", "train/1.0.parquet"])
def test_a_patient_in_two_files_is_refused(tmp_path, cohort, write_patient, other):
    write_patient(tmp_path / "in/train/1.parquet", ROWS)
    write_patient(tmp_path / "in" / other, ROWS)
    with pytest.raises(InputError) as error:
        cohort("patient-parquet", tmp_path / "in")
    assert "one subject is in" in str(error.value)
    assert "train/1.parquet" in str(error.value)
    assert other in str(error.value)


def test_other_columns_are_ignored_and_types_may_differ(tmp_path, cohort, write_patient, events_of):
    write_patient(tmp_path / "in/1.parquet", [("HR", 80, 5)], value=pa.int32(), minute=pa.int64())
    write_patient(tmp_path / "in/2.parquet", [("HR", "81.5", 5.5)], value=pa.string())
    table = pa.table(
        {
            "TABLE": ["x"],
            "minute": [1.0],
            "variable": pa.array(["HR"]).dictionary_encode(),
            "value": [82.0],
        }
    )
    pq.write_table(table, tmp_path / "in/3.parquet")
    rows = events_of(cohort("patient-parquet", tmp_path / "in", splits="all:train")).to_pylist()
    values = {(r["subject_id"], r["numeric_value"]) for r in rows if r["code"] == "HR"}
    assert values == {(1, 80.0), (2, 81.5), (3, 82.0)}


def test_blanks_are_events_without_value_and_statics(tmp_path, cohort, write_patient, events_of):
    rows = [("Vent", None, 3.0), ("Age", 60.0, None), ("HR", float("nan"), -10.0)]
    write_patient(tmp_path / "in/1.parquet", rows)
    rows = events_of(cohort("patient-parquet", tmp_path / "in")).to_pylist()
    assert [(r["code"], r["numeric_value"]) for r in rows] == [
        ("Age", 60.0),
        ("HR", None),
        ("ADMISSION", None),
        ("Vent", None),
    ]
    assert minutes(rows) == [None, -10, 0, 3]


def test_bad_rows_are_quarantined_by_file_and_row(tmp_path, cohort, write_patient, events_of):
    bad = [
        ("HR", "80", 1.0),
        ("HR", "abc", 2.0),
        (None, "1", 3.0),
        ("HR", "inf", 4.0),
        ("HR", "1", float("inf")),
    ]
    write_patient(tmp_path / "in/train/1.parquet", [("HR", "1", 1.0)] * 3, value=pa.string())
    write_patient(tmp_path / "in/train/2.parquet", bad, value=pa.string())
    path = cohort("patient-parquet", tmp_path / "in", max_rejected=0.9)
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    assert [tuple(r.values()) for r in rejected] == [
        ("train/2.parquet", 3, "code is blank"),
        ("train/2.parquet", 5, "time inf is not a time"),
    ]
    values = [r["numeric_value"] for r in events_of(path).to_pylist() if r["subject_id"] == 2]
    assert values == [None, 80.0, None, None]


def test_bad_files_are_quarantined(tmp_path, cohort, write_patient):
    for i in range(3):
        write_patient(tmp_path / f"in/train/{i}.parquet", ROWS)
    write_patient(tmp_path / "in/train/10.parquet", [])
    (tmp_path / "in/train/11.parquet").write_bytes(b"")
    data = (tmp_path / "in/train/1.parquet").read_bytes()
    (tmp_path / "in/train/12.parquet").write_bytes(data[: len(data) // 2])
    pq.write_table(pa.table({"variable": ["HR"], "value": [1.0]}), tmp_path / "in/train/13.parquet")
    path = cohort("patient-parquet", tmp_path / "in", max_rejected=0.9)
    rejected = pq.read_table(path / "metadata/rejected.parquet").to_pylist()
    assert [r["file"] for r in rejected] == [f"train/{i}.parquet" for i in (10, 11, 12, 13)]
    assert [r["line"] for r in rejected] == [None] * 4
    assert rejected[0]["reason"] == "empty: no rows"
    assert rejected[3]["reason"] == "no column minute"


def test_too_much_bad_input_fails_in_one_line_and_leaves_nothing(tmp_path, cohort, write_patient):
    for i in range(3):
        write_patient(tmp_path / f"in/train/{i}.parquet", ROWS)
    (tmp_path / "in/train/9.parquet").write_bytes(b"junk")
    with pytest.raises(InputError) as error:
        cohort("patient-parquet", tmp_path / "in")
    message = str(error.value)
    assert message.startswith(
        "rejected 0 of 9 rows and 1 of 4 files, more than 0.01 of them: train/9.parquet: "
    )
    assert message.endswith("; fix them or raise --max-rejected")
    assert "\n" not in message
    assert list((tmp_path / "out").iterdir()) == []


def test_labels_default_to_the_last_event(tmp_path, cohort, write_patient):
    for i in (1, 2, 3):
        write_patient(tmp_path / f"in/train/{i}.parquet", ROWS)
    csv = tmp_path / "oc.csv"
    csv.write_text(
        "ts_id,in_hospital_mortality,SUBJECT_ID\n1.0,1,900\n2,,901\n3.0,0.0,902\n8,1,903\n"
    )
    path = cohort("patient-parquet", tmp_path / "in", labels=csv)
    assert [p.stem for p in (path / "labels").iterdir()] == ["in_hospital_mortality"]
    rows = pq.read_table(path / "labels/in_hospital_mortality.parquet").to_pylist()
    at = EPOCH + timedelta(minutes=2880)
    assert [tuple(r.values()) for r in rows] == [(1, at, True), (3, at, False)]


def test_labels_may_be_at_a_given_minute(tmp_path, cohort, write_patient):
    write_patient(tmp_path / "in/train/1.parquet", ROWS)
    (tmp_path / "oc.csv").write_text("ts_id,died\n1,1\n")
    path = cohort(
        "patient-parquet", tmp_path / "in", labels=tmp_path / "oc.csv", label_minute="720"
    )
    rows = pq.read_table(path / "labels/died.parquet").to_pylist()
    assert rows[0]["prediction_time"] == EPOCH + timedelta(hours=12)


def test_units_hold_names_only_and_group_files(tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(4500):
        (tmp_path / "train" / f"{i}.parquet").touch()
    work = units(tmp_path, PatientParquetOptions())
    assert [len(u.files) for u in work] == [2000, 2000, 500]
    assert all(isinstance(name, str) for u in work for name in u.files)


def test_an_empty_folder_says_what_is_looked_for(tmp_path, cohort):
    with pytest.raises(InputError, match=r"no <id>.parquet in it or in its train/"):
        cohort("patient-parquet", tmp_path)
