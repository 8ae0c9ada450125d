import math
from datetime import datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import (
    by_unique,
    events_table,
    numbers,
    since_epoch,
    texts,
    timestamps,
)

NAT = np.datetime64("NaT")


@given(st.lists(st.one_of(st.none(), st.floats(width=32), st.text(max_size=4)), max_size=30))
def test_text_numbers_equal_python_floats(cells):
    text = [None if c is None else str(c) for c in cells]
    values, bad = numbers(pa.array(text, pa.string()))
    for cell, value, wrong in zip(text, values, bad, strict=True):
        cell = (cell or "").strip()
        if cell.lower() in ("", "nan", "na", "null"):
            assert math.isnan(value)
            assert not wrong
            continue
        try:
            expected = float(cell)
        except ValueError:
            expected = math.inf
        assert wrong == (not math.isfinite(expected)) or "_" in cell
        assert wrong or value == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None, -3]), [1, None, -3]),
        (pa.array([True, False]), [1, 0]),
        (pa.array([Decimal("1.50")]), [1.5]),
        (pa.nulls(2), [None, None]),
        (pa.array(["1", "2", "1"]).dictionary_encode(), [1, 2, 1]),
        (pa.array(["7"], pa.large_string()), [7]),
        (pa.array(["7"], pa.string_view()), [7]),
        (pa.chunked_array([[1.0], [float("nan")]]), [1, None]),
    ],
)
def test_every_column_of_numbers_is_read(column, expected):
    values, bad = numbers(column)
    assert [None if math.isnan(v) else v for v in values] == expected
    assert not bad.any()


def test_values_beyond_float32_are_bad():
    _, bad = numbers(pa.array([1e38, 1e39, float("inf"), float("-inf")]))
    assert bad.tolist() == [False, True, True, True]


def test_columns_that_hold_no_numbers_are_refused():
    with pytest.raises(InputError, match="column value holds list<item: int64>, not numbers"):
        numbers(pa.array([[1], [2]]))


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
