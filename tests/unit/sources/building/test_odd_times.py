import json

import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.building.odd_times import FAR, NO_YEAR, STAND_IN

HEAD = "subject_id,time,code,numeric_value\n"
PLAIN = [f"{i},2150-01-0{d},Na,140" for i in range(1, 6) for d in (1, 2)]


def made(tmp_path, cohort, *rows):
    (tmp_path / "e.csv").write_text(HEAD + "".join(f"{row}\n" for row in (*PLAIN, *rows)))
    return cohort("table", tmp_path / "e.csv")


def changes(path):
    rows = pq.read_table(path / "metadata/changes.parquet").to_pylist()
    return {(row["code"], row["change"]): row["count"] for row in rows}


def test_times_that_stand_for_none_are_told_and_kept(tmp_path, cohort, events_of):
    odd = ["1,1900-01-01,Glu,3", "1,0001-01-01,Glu,3", "2,9999-12-31,K,4", "3,1899-12-30,K,4"]
    right = ["4,1900-01-01,MEDS_BIRTH,", "4,1900-01-01 08:00,Na,1", "5,,SEX//F,"]
    path = made(tmp_path, cohort, *odd, *right)
    assert changes(path) == {
        ("Glu", NO_YEAR): 1,
        ("K", NO_YEAR): 1,
        ("Glu", STAND_IN): 1,
        ("K", STAND_IN): 1,
    }
    assert len(events_of(path)) == len(PLAIN) + 7


def test_times_that_are_right_are_not_told(tmp_path, cohort):
    path = made(tmp_path, cohort, "1,1923-05-01,MEDS_BIRTH,", "2,2214-12-31 23:59,K,4", "3,,SEX,")
    assert changes(path) == {}


def test_an_input_of_which_most_times_are_far_off_is_refused(tmp_path, cohort):
    with pytest.raises(
        InputError, match="11 of 21 events are before the year 1000 or after 4000: are"
    ):
        made(tmp_path, cohort, *["1,9999-12-31,K,4"] * 11)


def test_dates_that_were_shifted_far_are_told_and_read(tmp_path, cohort):
    """As those of MIMIC-II, in the 26th to 36th century."""
    (tmp_path / "e.csv").write_text("subject_id,time,code,numeric_value\n1,2682-09-07,K,4\n")
    assert changes(cohort("table", tmp_path / "e.csv")) == {("K", FAR): 1}


def test_milliseconds_are_no_seconds(tmp_path, cohort):
    (tmp_path / "in/train").mkdir(parents=True)
    (tmp_path / "in/vocab.csv").write_text("token,str\n1,K\n")
    record = {"subject_id": 1, "tokens": [1, 1], "timestamps": [1.7e12, 1.7e12]}
    (tmp_path / "in/train/0.json").write_text(json.dumps([record]))
    with pytest.raises(InputError, match="2 of 2 events are before the year 1000 or after 4000"):
        cohort("tokenised", tmp_path / "in")
