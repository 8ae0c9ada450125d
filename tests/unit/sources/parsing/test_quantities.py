import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import BLANK
from ehr_ray.sources.parsing.quantities import (
    DECIMAL_COMMA,
    FIRST_SIGN,
    GROUPED,
    PLAIN,
    SIGNS,
    UNREADABLE,
    numbers,
    quantities,
    quantity,
    sign_text,
)


@given(st.lists(st.one_of(st.none(), st.floats(width=32), st.text(max_size=4)), max_size=30))
def test_text_numbers_equal_python_floats(cells):
    text = [None if c is None else str(c) for c in cells]
    values, bad = numbers(pa.array(text, pa.string()))
    for cell, value, wrong in zip(text, values, bad, strict=True):
        cell = (cell or "").strip().replace("\u2212", "-")
        if cell.lower() in BLANK:
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


SIGNED = [(">100", ">", 100), ("< 0.01", "<", 0.01), ("≥5", ">=", 5), ("=<5", "<=", 5)]
SIGNED += [("less than 0.2", "<", 0.2), ("GREATER THAN 1,500", ">", 1500), (">−2", ">", -2)]


@pytest.mark.parametrize(("text", "sign", "value"), SIGNED)
def test_an_inequality_keeps_its_number_and_its_sign(text, sign, value):
    assert quantity(text) == (value, FIRST_SIGN + SIGNS.index(sign))
    assert sign_text(quantity(text)[1], np.float32(value)) == f"{sign}{value:g}"


@pytest.mark.parametrize(
    ("text", "value", "kind"),
    [
        ("1,234", 1234, GROUPED),
        ("-1,234,567.5", -1234567.5, GROUPED),
        ("\u22122.5", -2.5, PLAIN),
        (" 7 ", 7, PLAIN),
        ("N/A", None, PLAIN),
        ("None", None, PLAIN),
        ("POSITIVE", None, UNREADABLE),
        (">POSITIVE", None, UNREADABLE),
        ("1e99", None, UNREADABLE),
        ("98%", None, UNREADABLE),
        ("7,4", None, DECIMAL_COMMA),
        ("0,123", None, DECIMAL_COMMA),
        ("1,2,3", None, UNREADABLE),
    ],
)
def test_cells_are_read_as_people_mean_them(text, value, kind):
    found, what = quantity(text)
    assert what == kind
    assert math.isnan(found) if value is None else found == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("7,4", 7.4), ("1.234,5", 1234.5), ("<0,01", 0.01), ("12", 12), ("1.5", None)],
)
def test_a_decimal_comma_is_read_where_it_is_said(text, value):
    (found,), _ = quantities(pa.array([text]), decimal=",")
    assert math.isnan(found) if value is None else found == value


def test_one_odd_cell_changes_no_other():
    values, kinds = quantities(pa.array(["1.25", ">3", "", None, "x", "1.25"]))
    np.testing.assert_array_equal(values, [1.25, 3, np.nan, np.nan, np.nan, 1.25])
    assert kinds.tolist() == [PLAIN, FIRST_SIGN + 2, PLAIN, PLAIN, UNREADABLE, PLAIN]


def test_a_column_that_must_hold_numbers_takes_no_inequality():
    values, bad = numbers(pa.array([">3", "4"]))
    assert bad.tolist() == [True, False]
    assert math.isnan(values[0])


@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("again", [1, 50])
def test_a_column_with_odd_cells_is_what_its_cells_are(decimal, again):
    plain = [f"{number:.4f}".replace(".", decimal) for number in np.linspace(-9, 9, 997)]
    odd = [
        "-",
        "",
        "NA",
        "7.",
        "7,",
        "+5",
        "1e3",
        "1e999",
        "9" * 400,
        ">100",
        "1,234",
        "1.234",
        "µ",
    ]
    column = pa.array([*plain, *odd, None] * again)
    values, kinds = quantities(column, decimal=decimal)
    expected = [quantity(cell, decimal) for cell in column.to_pylist()]
    np.testing.assert_array_equal(values, [value for value, _ in expected])
    assert kinds.tolist() == [kind for _, kind in expected]


@pytest.mark.parametrize("cells", [["1", "2.5"], ["1", "1", "1"], ["1", "x"], [1.0, 2.0]])
def test_numbers_may_be_written_to(cells):
    values, bad = numbers(pa.array(cells))
    values[~bad] = 0.0
    assert np.nansum(values) == 0
