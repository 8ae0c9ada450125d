from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.label_table import (
    LabelFields,
    LabelOptions,
    label_units,
    read_labels,
)
from ehr_ray.sources.table import TableOptions, read_times


def options(
    columns=None, minute=None, id_column="subject_id", stays=True, unit="timestamp", **others
):
    return LabelOptions(
        **others,
        id_column=id_column,
        default_id="subject_id",
        stays=stays,
        time_columns=("prediction_time", "time"),
        read_time=partial(read_times, TableOptions(time_unit=unit)),
        tasks=columns,
        minute=minute,
    )


@pytest.fixture
def read(tmp_path):
    def run(text, columns=None, minute=None, **others):
        (tmp_path / "l.csv").write_text(text)
        (unit,) = label_units(LabelFields(tmp_path / "l.csv"))
        (chunk,) = read_labels(unit, options(columns, minute, **others))
        return chunk

    return run


def pairs(table):
    return list(
        zip(table["subject_id"].to_pylist(), table["boolean_value"].to_pylist(), strict=True)
    )


@pytest.mark.parametrize("name", ["subject_id", "ts_id", "RecordID", "PATIENT_ID", "stay_id"])
def test_the_one_id_column_is_known_by_its_name(read, name):
    chunk = read(f"died,{name}\n1,1\nFalse,2.0\n,3\n TRUE ,4\nnan,5\n")
    assert pairs(chunk.labels["died"]) == [(1, True), (2, False), (3, None), (4, True), (5, None)]


def test_the_column_that_is_named_joins_whatever_else_is_there(read):
    text = "subject_id,stay_id,died\n7,1,1\n"
    assert pairs(read(text, id_column="stay_id").labels["died"]) == [(1, True)]
    assert pairs(read(text).labels["died"]) == [(7, True)]


@pytest.mark.parametrize(
    ("header", "others"),
    [
        ("patient_id,stay_id,died", {}),  # two candidates
        ("anything,other,died", {}),  # none
        ("subject_id,other,died", {"id_column": "stay_id"}),  # the one that is named is not there
        ("stay_id,other,died", {"stays": False}),  # events are of subjects
    ],
)
def test_labels_are_not_joined_by_a_guess(read, header, others):
    with pytest.raises(InputError, match=r"l\.csv: no column \w+_id, by which labels are joined"):
        read(f"{header}\n1,2,1\n", **others)


def test_the_only_column_of_truth_values_is_the_task(read):
    chunk = read("id,length_of_stay,died\n1,5,0\n2,1,1\n3,2,0\n")
    assert list(chunk.labels) == ["died"]


def test_of_several_columns_of_truth_values_the_tasks_must_be_named(read):
    text = "id,sex,age,died\n1,0,61,1\n2,1,44,\n"
    with pytest.raises(InputError, match=r"l\.csv: sex, died hold truth values; .*--label-columns"):
        read(text)
    assert list(read(text, columns="died").labels) == ["died"]
    with pytest.raises(InputError, match=r"--label-columns los: l\.csv has sex, age, died"):
        read(text, columns="los")
    with pytest.raises(InputError, match=r"--label-columns died: l\.csv has 'died '"):
        read("id,died \n1,1\n", columns="died")


@pytest.mark.parametrize("cell", ["maybe", "yes", "2", "0.5", "-1", "no"])
def test_what_is_no_truth_value_is_refused_by_file_row_column_and_value(read, cell):
    message = rf"l\.csv: row 3, column died: '{cell}' is no truth value"
    with pytest.raises(InputError, match=message):
        read(f"id,died\n1,0\n2,{cell}\n3,1\n", columns="died")


def test_rows_without_id_and_malformed_rows_are_rejected_by_line(read):
    chunk = read("id,died\n1,0\n,1\n3,1,1\n4,1\n")
    assert pairs(chunk.labels["died"]) == [(1, False), (4, True)]
    assert sorted((r["line"], r["reason"]) for r in chunk.rejects.to_pylist()) == [
        (3, "id is blank"),
        (4, "3 cells where the header has 2: '3,1,1'"),
    ]
    assert chunk.rows_read == 4


def test_prediction_times_are_read_and_a_subject_may_have_several(read):
    text = "patient_id,prediction_time,value,label_type\n"
    text += "1,2150-01-02 00:00:00,True,boolean\n1,2150-01-03 00:00:00,False,boolean\n"
    table = read(text).labels["value"]
    days = [str(t.date()) for t in table["prediction_time"].to_pylist()]
    assert (pairs(table), days) == ([(1, True), (1, False)], ["2150-01-02", "2150-01-03"])


def test_prediction_times_may_count_from_admission_as_those_of_the_events_do(read):
    table = read("id,time,died\n1,24,1\n", unit="hours").labels["died"]
    assert str(table["prediction_time"][0].as_py()) == "2000-01-02 00:00:00"


@pytest.mark.parametrize("name", ["Prediction_Time", "prediction time", "PredictionTime", "TIME"])
def test_the_column_of_prediction_times_is_known_however_its_name_is_written(read, name):
    table = read(f"id,{name},died\n1,2024-01-01 08:30,1\n").labels["died"]
    assert str(table["prediction_time"][0].as_py()) == "2024-01-01 08:30:00"


def test_two_columns_that_may_both_say_when_are_refused(read):
    with pytest.raises(InputError, match="which of 'Time', 'TIME' says when"):
        read("id,Time,TIME,died\n1,2024-01-01,2024-01-02,1\n")


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("index_time", ("2024-01-01 08:30", "")),
        ("prediction_hours", ("0", "0")),
        ("cutoff", ("01.02.2024 08:30", "03.02.2024")),
        ("when", ("2024-01-01", "")),
        ("hours", ("24", "36")),
    ],
)
def test_a_column_that_may_say_when_is_not_ignored(read, name, cells):
    text = f"id,{name},died\n1,{cells[0]},1\n2,{cells[1]},0\n"
    with pytest.raises(InputError, match=f"l.csv: column '{name}' may be of times, and is not"):
        read(text, columns="died")
    assert len(read(text, columns="died", minute=60).labels["died"]) == 2
    assert len(read(f"id,{name},time,died\n1,{cells[0]},2024-01-01,1\n", "died").labels["died"])


def test_what_is_no_time_may_stand_beside_the_labels(read):
    text = "subject_id,hadm_id,died_within_24_hours,ward,candidate,score,version,died\n"
    text += "1,20121105,1,B,7,0.5,1.2,0\n2,20121106,,C-1,8,-1,2.2,1\n"
    found = read(text, "died").labels["died"]
    assert pairs(found) == [(1, False), (2, True)]
    text = "id,sentiment,minute_ventilation,los_hours,sedated,icd,dob,dischtime,died\n"
    text += "1,0.3,6.5,70,yes,1.2.3,1950-01-02,2024-01-02 08:00,0\n"
    assert pairs(read(text, "died").labels["died"]) == [(1, False)]
    assert list(read("id,survival_time,died\n1,4,0\n", numbers="survival_time").labels)
    assert list(read("id,died_within_24_hours\n1,1\n2,0\n").labels) == ["died_within_24_hours"]


@pytest.mark.parametrize("cell", ["", "soon"])
def test_a_row_without_a_prediction_time_is_refused(read, cell):
    with pytest.raises(InputError, match=r"l\.csv: row 3, column time: no time, as in 1 rows"):
        read(f"id,time,died\n1,2150-01-01,1\n2,{cell},1\n")


def test_a_time_column_and_a_minute_for_all_contradict(read):
    with pytest.raises(InputError, match=r"--label-minute 60: l\.csv has time; drop one"):
        read("id,time,died\n1,2150-01-01,1\n", minute=60)


@pytest.mark.parametrize(
    "answers",
    [
        pa.array([True, None, False]),
        pa.array([1.0, float("nan"), 0.0]),
        pa.array([1, None, 0]),
        pa.array(["True", "None", " false"]),
        pa.array(["1", "", "0"]).dictionary_encode(),
    ],
)
def test_answers_of_data_frames_are_read_for_what_they_say(tmp_path, answers):
    pq.write_table(pa.table({"subject_id": [1, 2, 3], "died": answers}), tmp_path / "l.parquet")
    (chunk,) = read_labels(*label_units(LabelFields(tmp_path / "l.parquet")), options())
    assert pairs(chunk.labels["died"]) == [(1, True), (2, None), (3, False)]
    assert np.isnat(chunk.labels["died"]["prediction_time"].to_numpy()).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty, not even a header"),
        ("id,age,sofa\n1,33,4\n2,44,5\n", "no column of truth values .* beside id.* --label-"),
        ("id,died\n1,yes\n2,no\n3,2\n", r"row 2, column died: 'yes' is no truth value"),
    ],
)
def test_a_table_without_labels_is_refused(read, text, message):
    with pytest.raises(InputError, match=message):
        read(text)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--labels .*no\.csv: no such file"):
        label_units(LabelFields(tmp_path / "no.csv"))


TABLE = "subject_id,died,days,unit,score\n1,0,2.5, ward ,0\n2,1,,ICU,1\n,1,4,ICU,0\n3,,-1,nan,1\n"


def test_columns_of_numbers_and_of_classes_are_tasks_where_they_are_named(read):
    labels = read(TABLE, "died", numbers="days, score", classes="unit").labels
    assert list(labels) == ["died", "days", "score", "unit"]
    assert pairs(labels["died"]) == [(1, False), (2, True), (3, None)]
    assert labels["days"]["float_value"].to_pylist() == [2.5, None, -1]
    assert labels["score"]["float_value"].to_pylist() == [0, 1, 1]
    assert labels["unit"]["categorical_value"].to_pylist() == ["ward", "ICU", None]


def test_no_column_of_truth_values_is_a_task_beside_those_that_are_named(read):
    assert list(read(TABLE, numbers="days").labels) == ["days"]


def test_numbers_and_classes_of_data_frames_are_read_for_what_they_say(tmp_path):
    table = pa.table({"subject_id": [1, 2], "grade": [2.0, None], "days": [3, 4]})
    pq.write_table(table, tmp_path / "l.parquet")
    (unit,) = label_units(LabelFields(tmp_path / "l.parquet"))
    (chunk,) = read_labels(unit, options(numbers="days", classes="grade"))
    assert chunk.labels["grade"]["categorical_value"].to_pylist() == ["2", None]
    assert chunk.labels["days"]["float_value"].to_pylist() == [3, 4]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"numbers": "unit"}, r"l.csv: row 2, column unit: ' ward ' is no number, as in 3 rows"),
        ({"numbers": "stay"}, r"^--label-numbers stay: l.csv has died, days, unit, score"),
        ({"classes": "subject_id"}, r"^--label-classes subject_id: l.csv has died"),
        ({"numbers": "score", "classes": "score"}, r"^--label-classes score: named as another"),
    ],
)
def test_what_is_no_number_or_no_column_is_refused(read, named, message):
    with pytest.raises(InputError, match=message):
        read(TABLE, **named)


def test_options_of_labels_without_a_table_of_them_are_refused():
    assert label_units(LabelFields()) == []
    with pytest.raises(InputError, match="--label-numbers days: needs --labels FILE"):
        label_units(LabelFields(label_numbers="days"))
