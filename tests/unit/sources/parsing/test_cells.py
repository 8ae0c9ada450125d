import math
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import (
    by_unique,
    events_table,
    since_epoch,
    texts,
    timestamps,
    whole,
    words,
    zoned,
)

NAT = np.datetime64("NaT")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2020-02-29 01:02:03", datetime(2020, 2, 29, 1, 2, 3)),
        ("2020-02-29T01:02:03.5", datetime(2020, 2, 29, 1, 2, 3, 500_000)),
        ("2020-02-29", datetime(2020, 2, 29)),
        ("2020-02-29T01:00:00+02:00", datetime(2020, 2, 28, 23)),
        ("2180-07-23 12:35:00", datetime(2180, 7, 23, 12, 35)),
        ("1850-01-01", datetime(1850, 1, 1)),
        ("", None),
        ("NaT", None),
    ],
)
def test_dates_in_text_are_read(text, expected):
    times, bad = timestamps(pa.array([text]))
    assert times[0].item() == expected
    assert not bad[0]


@pytest.mark.parametrize("text", ["2020-02-30", "yesterday", "12:30", "5"])
def test_text_that_is_no_date_is_bad(text):
    assert timestamps(pa.array([text, "2020-01-01"]))[1].tolist() == [True, False]


@pytest.mark.parametrize("worst", ["soon", "2020-13-01 00:00", "0000-01-01 00:00:00"])
def test_odd_cells_change_no_other_time(worst):
    plain = [
        *("2020-02-29 01:02:03", "2020-02-29T01:02:03.25", "2020-02-29 01:02", "1850-12-31T23:59"),
        *("2020-02-29 01:02:03.1234567", "2020-02-29", "20200229T010203", "2020-02-29T01:00Z"),
        *(" 2020-02-29 01:02:03", "", None, "2020-02-30 01:02:03", "2020-02-29 24:00:00", "NaT"),
    ]
    times, bad = timestamps(pa.array([*plain, worst]))
    each = [timestamps(pa.array([cell, "yesterday"], pa.string())) for cell in plain]
    np.testing.assert_array_equal(times[:-1], [one[0] for one, _ in each])
    assert bad.tolist() == [*(one[0] for _, one in each), True]


def test_dates_of_any_arrow_type_are_read():
    day = datetime(2020, 1, 2)
    for kind in (
        pa.timestamp("ns"),
        pa.timestamp("s"),
        pa.date32(),
        pa.timestamp("us", "Europe/Berlin"),
    ):
        times, _ = timestamps(pa.array([day, None], pa.timestamp("us")).cast(kind))
        assert times[0].item() == day
        assert np.isnat(times[1])


@given(st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=1))
def test_minutes_after_the_epoch_are_rounded_to_microseconds(minutes):
    values = np.array([math.nan if m is None else m for m in minutes])
    times, bad = since_epoch(values, 1.0)
    assert not bad.any()
    for minute, time in zip(minutes, times, strict=True):
        if minute is None:
            assert np.isnat(time)
        else:
            exact = datetime(2000, 1, 1) + timedelta(minutes=minute)
            assert abs(time.item() - exact) <= timedelta(microseconds=1 + abs(minute) * 1e-5)


def test_absurd_times_are_bad():
    _, bad = since_epoch(np.array([1e12, math.inf, -math.inf, 0.0]), 1.0)
    assert bad.tolist() == [True, True, True, False]


def test_numbers_serve_as_codes():
    column, blank = texts(pa.array([220045, None]))
    assert column.to_pylist() == ["220045", None]
    assert blank.tolist() == [False, True]


def test_a_code_is_one_however_it_was_written():
    text = pa.array(["220045", "220045.0", " 220045 ", "220045.00"])
    assert set(texts(text)[0].to_pylist()) == {"220045"}
    assert texts(pa.array([220045.0, float("nan")]))[0].to_pylist() == ["220045", None]
    assert texts(pa.array([220045.0], pa.float32()))[0].to_pylist() == ["220045"]
    with pytest.raises(InputError, match="1 cells of column code went through floats of 32 bits"):
        texts(pa.array([2_000_000_001.0, 5.0], pa.float32()))
    # Codes of ICD-9 differ by it.
    assert texts(pa.array(["250", "250.0", "Na", "NA"]))[0].to_pylist() == [
        "250",
        "250.0",
        "Na",
        "NA",
    ]


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "NULL", "null", "<NA>", "N/A", "", "  "])
def test_a_missing_code_is_no_code(text):
    column, blank = texts(pa.array([text, "HR"]))
    assert column.to_pylist() == [None, "HR"]
    assert blank.tolist() == [True, False]
    assert words(pa.array([text, "HR"]), "UNK")[0].to_pylist() == ["UNK", "HR"]


@pytest.mark.parametrize("text", ["0x1F", "1e5", "9007199254740993.0", "1" * 19, "٣"])
def test_whole_numbers_are_written_in_digits_and_were_never_rounded(text):
    numbers, blank, bad = whole(pa.array([text, "31"]))
    assert numbers.tolist() == [0, 31]
    assert bad.tolist() == [True, False]
    assert not blank.any()


def test_times_with_and_without_a_zone_are_told_apart():
    said = ["2020-01-01T10:00Z", "2020-01-01 10:00:00+02:00", "20200101T1000-05", None]
    assert zoned(pa.array(said)).tolist() == [True, True, True, False]
    weeks = ["2024-W01-1T23:00-05:00", "2024W011T23Z", "2024-W01-1T23:00", "2024-W01-1"]
    assert zoned(pa.array(weeks)).tolist() == [True, True, False, False]
    assert not zoned(pa.array(["2020-01-02", "2020-01-01 10:00", "", "nan", "soon"])).any()
    assert zoned(pa.array([1, None], pa.timestamp("us", "UTC"))).tolist() == [True, False]
    assert not zoned(pa.array([1, None], pa.timestamp("us"))).any()
    assert not zoned(pa.array([1], pa.date32())).any()


def test_each_distinct_cell_is_parsed_once():
    seen = []
    result = by_unique(
        pa.array(["a", "b", None, "a"]), lambda c: seen.append(c) or len(seen), np.int64
    )
    assert result.tolist() == [1, 2, 3, 1]


def test_nothing_becomes_null():
    table = events_table(
        np.array([1]), np.array([NAT], "M8[us]"), pa.array(["A"]), np.array([math.nan])
    )
    assert table.to_pylist() == [
        {"subject_id": 1, "time": None, "code": "A", "numeric_value": None}
    ]
