import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.event_table import check_zones, events_of, like, times_of
from ehr_ray.events.schema import EVENTS

ROWS = {
    "subject_id": [2, 1, 1, 2],
    "time": pd.to_datetime(["2020-01-02", "2020-01-01", None, "2020-01-01"]),
    "code": ["HR", "HR", "SEX", "HR"],
    "numeric_value": [3.0, 1.0, None, 2.0],
}


def test_rows_in_any_order_become_those_of_a_shard():
    found = events_of(pd.DataFrame(ROWS))
    assert found.schema == EVENTS
    assert found["subject_id"].to_pylist() == [1, 1, 2, 2]
    assert found["code"].to_pylist() == ["SEX", "HR", "HR", "HR"]
    assert found["numeric_value"].to_pylist() == [None, 1.0, 2.0, 3.0]


def test_rows_of_one_subject_and_time_stay_in_their_order():
    same = pd.Timestamp("2020-01-01")
    values = [float(n) for n in np.random.default_rng(0).permutation(40)]
    frame = pd.DataFrame({"subject_id": 7, "time": same, "code": "HR", "numeric_value": values})
    assert events_of(frame)["numeric_value"].to_pylist() == values


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_any_unit_and_zone_are_utc_microseconds(unit):
    local = (
        pd.Series(["2020-01-01 12:00"]).astype(f"datetime64[{unit}]").dt.tz_localize("Asia/Tokyo")
    )
    found = events_of(pd.DataFrame({"subject_id": [1], "time": local, "code": ["HR"]}))
    assert found["time"].to_pylist() == [datetime.datetime(2020, 1, 1, 3)]
    assert found["numeric_value"].null_count == 1


def test_columns_that_libraries_make_of_texts_and_numbers_are_read():
    frame = pd.DataFrame(ROWS)
    frame["code"] = frame["code"].astype("category")
    frame["subject_id"] = frame["subject_id"].astype("Int64")
    frame["text_value"] = "more"
    assert events_of(frame).equals(events_of(pd.DataFrame(ROWS)))
    table = pa.Table.from_pandas(pd.DataFrame(ROWS), preserve_index=False)
    table = table.set_column(2, "code", table["code"].cast(pa.large_string()))
    assert events_of(table).equals(events_of(pd.DataFrame(ROWS)))
    assert events_of(table.to_batches()[0]).equals(events_of(table))


def test_an_empty_frame_has_no_events():
    assert (
        events_of(pd.DataFrame({"subject_id": [], "time": [], "code": []}, dtype=object)).num_rows
        == 0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": None}, r"events: 0 columns code; give one each of subject_id, time, code"),
        ({"time": ["2020-01-01"] * 4}, r"time is \w+, which must be timestamps \(pandas"),
        ({"time": [0, 1, 2, 3]}, r"time is int64, which must be timestamps"),
        ({"subject_id": ["a", "b", "c", "d"]}, r"subject_id is \w+, which must be whole numbers"),
        ({"subject_id": [1.0, 1.5, 2.0, 2.0]}, r"must be whole numbers that fit int64"),
        ({"subject_id": [1, None, 1, 1]}, r"events: row 2: no subject_id; give one or drop"),
        ({"code": ["HR", "HR", None, "HR"]}, r"events: row 3: no code"),
        ({"numeric_value": ["1", "2", "3", "4"]}, r"numeric_value is \w+, which must be numbers"),
        ({"numeric_value": ["a", 2, None, 4]}, r"give columns of one type each"),
    ],
)
def test_a_column_that_cannot_be_read_is_named(change, message):
    rows = {name: values for name, values in {**ROWS, **change}.items() if values is not None}
    with pytest.raises(InputError, match=message):
        events_of(pd.DataFrame(rows))


def test_what_is_no_table_is_refused_and_so_are_times_without_one():
    with pytest.raises(
        InputError, match="events: a list; give a pandas DataFrame or an Arrow table"
    ):
        events_of([1, 2])
    with pytest.raises(InputError, match="prediction_times: 0 columns prediction_time"):
        times_of(pd.DataFrame({"subject_id": [1]}))


def test_the_answer_is_a_table_of_the_kind_that_was_given():
    table = pa.table({"subject_id": [1], "probability": [0.5]})
    assert like(table, table) is table
    assert isinstance(like(table, pd.DataFrame()), pd.DataFrame)


AWARE = {"subject_id": [1], "time": pd.to_datetime(["2020-01-01 09:00+02:00"]), "code": ["HR"]}
BARE = {**AWARE, "time": pd.to_datetime(["2020-01-01 09:00"])}


@pytest.mark.parametrize("kind", [pd.DataFrame, pa.table])
def test_events_and_prediction_times_are_both_with_a_zone_or_both_without(kind):
    for events, asked, first in (
        (AWARE, BARE, "events: times with a zone, but none in prediction_times"),
        (BARE, AWARE, "prediction_times: times with a zone, but none in events; give both with"),
    ):
        times = {"subject_id": [1], "prediction_time": asked["time"]}
        with pytest.raises(InputError, match=first):
            check_zones(kind(events), kind(times))
        check_zones(kind(events), kind({"subject_id": [1], "prediction_time": events["time"]}))


def test_a_column_of_times_with_and_without_a_zone_is_refused():
    times = pd.Series([AWARE["time"][0], BARE["time"][0], None], dtype=object)
    frame = pd.DataFrame({"subject_id": [1, 1, 1], "time": times, "code": ["HR"] * 3})
    with pytest.raises(InputError, match="events: time has times with a zone and others without"):
        events_of(frame)
