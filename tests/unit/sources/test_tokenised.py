import json
import pickle
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.phrases import phrase_of

WORDS = ["<start>", "<end>", "LAB//WBC", "7.25", "10*9/L", "low", "MEDICAL//I10", "NA"]
DAY = 86_400


def record(subject, tokens, seconds):
    return {"subject_id": subject, "tokens": tokens, "timestamps": seconds}


@pytest.fixture
def folder(tmp_path):
    """A patient in each split, in each of the formats that are read."""
    path = tmp_path / "in"
    for split in ("train", "tuning", "held_out"):
        (path / split).mkdir(parents=True)
    lines = [f"{i},{word},5" for i, word in enumerate(WORDS)]
    (path / "vocab.csv").write_text("\n".join(["token,str,count", *lines]) + "\n")
    first = record(1, [0, 7, 2, 3, 4, 6, 2, 5, 1], [0, None, *[DAY] * 3, *[3 * DAY] * 4])
    (path / "train" / "0.json").write_text(json.dumps([first]))
    line = json.dumps(record(2, [6], [DAY]))
    (path / "tuning" / "0.jsonl").write_text(line + "\n")
    table = pa.Table.from_pylist([record(3, [2, 3], [DAY, DAY])])
    pq.write_table(table, path / "held_out" / "0.parquet")
    labels = ["subject_id,is_case,site,cancerdate", "1,1,lung,1970-02-10", "2,0,,", "3,0,,"]
    (path / "labels.csv").write_text("\n".join(labels) + "\n")
    return path


def said(table):
    return [(r["code"], r["numeric_value"]) for r in table.to_pylist()]


def test_tokens_become_events_with_their_values_and_units(folder, cohort, events_of):
    path = cohort("tokenised", folder, cutoff_months=1)
    rows = events_of(path, "train")
    assert said(rows) == [
        ("NA", None),
        ("LAB//WBC//10*9/L", 7.25),
        ("MEDICAL//I10", None),
        ("LAB//WBC//low", None),
    ]
    assert [t and t.day for t in rows["time"].to_pylist()] == [None, 2, 4, 4]
    assert phrase_of("LAB//WBC//low") == "Lab White blood cell count low"
    assert said(events_of(path, "held_out")) == [("LAB//WBC", 7.25)]
    assert said(events_of(path, "tuning")) == [("MEDICAL//I10", None)]


def test_a_hidden_file_holds_no_records(folder, cohort, events_of):
    for name in ("._0.json", "._0.pkl"):
        (folder / "train" / name).write_text("what a Mac notes beside a file")
    path = cohort("tokenised", folder, cutoff_months=1)
    assert {*events_of(path, "train")["subject_id"].to_pylist()} == {1}


def test_folders_of_splits_may_have_capitals_and_others_lose_nobody(folder, cohort, events_of):
    (folder / "held_out").rename(folder / "Test")
    (folder / "Test" / "0.parquet").rename(folder / "Test" / "0.PARQUET")
    (folder / "config").mkdir()
    (folder / "config" / "run.json").write_text(json.dumps({"model": 1}))
    path = cohort("tokenised", folder, cutoff_months=1)
    assert said(events_of(path, "held_out")) == [("LAB//WBC", 7.25)]
    (folder / "tuning").rename(folder / "eval")
    with pytest.raises(InputError, match=r"--input .*: eval/ has files of patients and is no"):
        cohort("tokenised", folder, name="eval", cutoff_months=1)


def test_tokens_may_stay_apart(folder, cohort, events_of):
    path = cohort("tokenised", folder, values="apart", cutoff_months=1)
    codes = [code for code, _ in said(events_of(path, "train"))]
    assert codes == ["NA", "LAB//WBC", "7.25", "10*9/L", "MEDICAL//I10", "LAB//WBC", "low"]


@pytest.mark.parametrize("months", [None, 0, -1])
def test_labels_without_a_cutoff_before_them_are_refused(folder, cohort, months):
    with pytest.raises(InputError, match=r"--cutoff-months .*labels\.csv dates what"):
        cohort("tokenised", folder, cutoff_months=months)
    (folder / "labels.csv").unlink()
    assert cohort("tokenised", folder, cutoff_months=months).is_dir()


def test_the_cutoff_moves_cases_and_controls_alike(folder, cohort):
    path = cohort("tokenised", folder, cutoff_months=1)
    rows = pq.read_table(path / "labels" / "case.parquet").to_pylist()
    assert [r["boolean_value"] for r in rows] == [True, False, False]
    days = [r["prediction_time"].timetuple().tm_yday for r in rows]
    assert days[0] == 10  # 30.4 days before February 10
    assert rows[1]["prediction_time"].year == 1969  # a month before the control's last event


def test_bad_input_is_named_with_the_remedy(folder, cohort):
    def refused(match):
        with pytest.raises(InputError, match=match):
            cohort("tokenised", folder, cutoff_months=1)

    other = folder / "train" / "1.json"
    other.write_text(json.dumps([record(9, [6], [DAY])]))
    refused("a subject has no row in labels.csv.*--unlabelled keep")
    cohort("tokenised", folder, name="kept", unlabelled="keep", cutoff_months=1)
    other.write_text(json.dumps([record(1, [99], [DAY])]))
    refused("a subject has token id 99, which vocab.csv has not")
    other.write_text(json.dumps([record(1, [6, 6], [DAY])]))
    refused("2 tokens and 1 timestamps")
    other.write_text(json.dumps([{"id": 5}]))
    refused("without subject_id, tokens and timestamps")
    (folder / "train" / "1.json").write_text(json.dumps(record(2, "x", [])))
    refused("1 tokens and 0 timestamps")
    other.write_text("{")
    refused("unreadable, damaged")
    other.write_text(json.dumps([record(2, [6], [DAY])]))
    refused("1 subjects are in more than one split")
    for time in ("1970-01-02T00:00:00", "inf"):
        other.write_text(json.dumps([record(1, [6], [time])]))
        refused(f"train/1.json: the timestamp '{time}' is no number; write Unix seconds")
    pq.write_table(
        pa.Table.from_pylist([record(1, [6], [datetime(2020, 1, 1)])]),
        folder / "train" / "2.parquet",
    )
    other.unlink()
    refused("train/2.parquet: the timestamp '2020-01-01 00:00:00' is no number")
    (folder / "train" / "2.parquet").unlink()
    (folder / "train" / "1.pkl").write_bytes(pickle.dumps([]))
    refused("a pickle runs code when it is read")


def test_a_token_has_one_meaning(folder, cohort):
    vocabulary = folder / "vocab.csv"
    vocabulary.write_text(vocabulary.read_text() + "6,MEDICAL//I10,9\n")
    cohort("tokenised", folder, cutoff_months=1)
    vocabulary.write_text(vocabulary.read_text() + "6,HR,9\n")
    with pytest.raises(InputError, match="token 6 is 'MEDICAL//I10' and 'HR'; keep one of them"):
        cohort("tokenised", folder, name="two", cutoff_months=1)


def test_a_json_file_may_hold_one_record(folder, cohort, events_of):
    (folder / "train" / "0.json").write_text(json.dumps(record(1, [6], [DAY])))
    assert said(events_of(cohort("tokenised", folder, cutoff_months=1), "train")) == [
        ("MEDICAL//I10", None)
    ]


def test_columns_that_are_needed_are_named_beside_those_there(folder, cohort):
    (folder / "labels.csv").write_text("subject_id,label\n1,1\n")
    with pytest.raises(InputError, match=r"no column is_case; it has subject_id, label"):
        cohort("tokenised", folder, cutoff_months=1)


def test_a_folder_without_vocabulary_or_records_is_named(folder, cohort):
    (folder / "vocab.csv").unlink()
    with pytest.raises(InputError, match=r"no vocab\.csv"):
        cohort("tokenised", folder, cutoff_months=1)
