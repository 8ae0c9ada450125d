import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.sources.parsing.kinds import parse

NAT = np.datetime64("NaT")


def parsed(kind, *cells):
    values, blank, bad = parse(pa.chunked_array([[*cells], []], pa.string()), kind)
    return np.asarray(values).tolist(), blank.tolist(), bad.tolist()


def test_identifiers_may_be_blank_or_written_as_floats():
    good = parsed("whole", "7", "", "-3")
    assert good == ([7, 0, -3], [False, True, False], [False] * 3)
    mixed = parsed("whole", "7", "", " 22995465.0", "x", "1.5", "NaN", "9" * 25)
    assert mixed[0] == [7, 0, 22995465, 0, 0, 0, 0]
    assert mixed[1] == [False, True, False, False, False, True, False]
    assert mixed[2] == [False, False, False, True, True, False, True]


def test_times_are_dates_with_or_without_a_clock():
    values, blank, bad = parse(
        pa.chunked_array([["2150-01-02 03:04:05", "2150-01-02", "", "2142-08-03 21:06:00.090"]]),
        "time",
    )
    expected = ["2150-01-02T03:04:05", "2150-01-02", "NaT", "2142-08-03T21:06:00.090"]
    np.testing.assert_array_equal(values, np.array(expected, "datetime64[us]"))
    assert blank.tolist() == [False, False, True, False]
    assert not bad.any()


@pytest.mark.parametrize("kind", ["time", "number", "whole"])
def test_one_bad_cell_changes_no_other(kind):
    cells = {"time": "2150-01-02 03:04:05", "number": "1.25", "whole": "12"}[kind]
    values, blank, bad = parse(pa.chunked_array([[cells, "?", "", cells]]), kind)
    alone, *_ = parse(pa.chunked_array([[cells]]), kind)
    assert values.dtype == alone.dtype
    assert values[0] == values[3] == alone[0]
    assert bad.tolist() == [False, True, False, False]
    assert blank.tolist() == [False, False, True, False]


def test_numbers_are_finite_and_fit():
    values, blank, bad = parse(pa.chunked_array([["1e3", "inf", "1e39", "", "nan"]]), "number")
    np.testing.assert_array_equal(values, [1000, np.nan, np.nan, np.nan, np.nan])
    assert bad.tolist() == [False, True, True, False, False]
    assert blank.tolist() == [False, False, False, True, True]


def test_words_are_trimmed_and_a_blank_one_is_unknown():
    assert parsed("text", " mg/dL ", "", "  ", "NA")[0] == ["mg/dL", "UNK", "UNK", "NA"]
    assert parsed("text", "a", " ")[1:] == ([False, True], [False, False])


@pytest.mark.parametrize("kind", ["whole", "time", "number", "text"])
def test_no_rows_are_no_values(kind):
    assert [len(part) for part in parse(pa.chunked_array([], pa.string()), kind)] == [0, 0, 0]


def test_a_concept_is_the_word_without_what_a_data_frame_made_of_a_number():
    cells = ("8532.0", " 0.00", "9201", "", "250.01", "x.0")
    found, blank, bad = parsed("concept", *cells)
    assert found == ["8532", "0", "9201", "UNK", "250.01", "x.0"]
    assert (blank, any(bad)) == ([False, False, False, True, False, False], False)
