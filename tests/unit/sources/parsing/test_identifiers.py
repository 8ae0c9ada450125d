import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import BLANK
from ehr_ray.sources.parsing.identifiers import (
    HASHED_FROM,
    NAMES,
    spellings,
    subject_id,
    subject_ids,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("276363.0", 276363), ("276363", 276363), ("-5", -5), (" 7 ", 7), ("007", 7), ("8.", 8)],
)
def test_names_that_spell_an_integer_are_it(name, expected):
    assert subject_id(name) == expected


@pytest.mark.parametrize("name", ["a", "1.5", "1e5", "", "12a", str(2**62), str(10**30)])
def test_other_names_are_hashed_into_their_own_range(name):
    assert HASHED_FROM <= subject_id(name) < 2**63


def test_the_hash_is_the_same_in_every_version():
    assert subject_id("P-17") == 6410143732081118009


@given(st.lists(st.one_of(st.none(), st.text(max_size=5), st.integers().map(str)), min_size=1))
def test_a_column_equals_its_cells(names):
    ids, blank, mapping = subject_ids(pa.array(names, pa.string()))
    pairs = set(zip(*mapping.to_pydict().values(), strict=True))
    for name, sid, empty in zip(names, ids.tolist(), blank.tolist(), strict=True):
        assert empty == ((name or "").strip().lower() in BLANK)
        if not empty:
            assert sid == subject_id(name)
            assert (sid, name) in pairs


def test_whole_floats_are_integers():
    ids, blank, mapping = subject_ids(pa.array([276363.0, None, 2.0]))
    assert ids[~blank].tolist() == [276363, 2]
    assert mapping["name"].to_pylist() == ["276363", "2"]


def test_integer_columns_keep_64_bits():
    ids, blank, _ = subject_ids(pa.chunked_array([[2**62 - 1, None], [-3]]))
    assert ids[~blank].tolist() == [2**62 - 1, -3]
    assert ids.dtype == np.int64


def test_integers_in_the_range_of_hashes_are_hashed():
    ids, _, mapping = subject_ids(pa.array([2**63 - 1, 5]))
    assert ids.tolist() == [subject_id(str(2**63 - 1)), 5]
    assert mapping["name"].to_pylist() == [str(2**63 - 1), "5"]


def test_large_whole_floats_are_written_in_full():
    ids, _, _ = subject_ids(pa.array([1e10, 2.0**53 - 1]))
    assert ids.tolist() == [10**10, 2**53 - 1]


@pytest.mark.parametrize(
    "column",
    [pa.array([2.0**53, 1.0]), pa.array(["1e+10"]), pa.array(["9007199254740993.0", "4"])],
    ids=str,
)
def test_ids_that_a_float_rounded_are_refused_by_that_reason(column):
    with pytest.raises(InputError, match="1 subject ids went through floating-point numbers"):
        subject_ids(column)


@pytest.mark.parametrize(("kind", "first"), [("float16", 2**11), ("float32", 2**24)])
def test_narrow_floats_round_smaller_ids(kind, first):
    def column(*values):
        return pa.array(np.array(values, kind))

    assert subject_ids(column(first - 1, 3))[0].tolist() == [first - 1, 3]
    with pytest.raises(InputError, match=f"1 subject ids went through floats of {kind[5:]} bits"):
        subject_ids(column(first, 3, np.nan))


def test_unsigned_ids_are_read_whatever_their_size():
    ids, _, _ = subject_ids(pa.array([7, 2**64 - 1], pa.uint64()))
    assert ids.tolist() == [7, subject_id(str(2**64 - 1))]


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "NULL", "NA", "n/a", "<NA>", " "])
def test_texts_for_nothing_are_no_id(text):
    _, blank, names = subject_ids(pa.array([text, "7"]))
    assert blank.tolist() == [True, False]
    assert names["name"].to_pylist() == ["7"]


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("P-17", "P-17 ", (1, 0, 0)),
        ("7", "7.0", (1, 0, 0)),
        ("007", "7", (0, 1, 0)),
        ("+7", "7", (0, 1, 0)),
        ("007", "007", (0, 0, 0)),
        ("7", "8", (0, 0, 0)),
    ],
)
def test_two_spellings_of_an_id_are_seen(one, other, found):
    pieces = [subject_ids(pa.array([name]))[2] for name in (one, other)]
    assert spellings(pa.concat_tables(pieces)) == found
    number = subject_ids(pa.array([7]))[2]
    if other == "7":
        assert spellings(pa.concat_tables([pieces[0], number])) == found


def test_names_of_one_hash_are_seen():
    assert spellings(pa.table([[5, 5], ["ann", "bob"]], schema=NAMES)) == (0, 0, 1)


@pytest.mark.parametrize("name", ["0xFFFFF", "0xFFFFFFFF", "0XABCDEF12"])
@pytest.mark.parametrize("beside", [[], ["P-1"], ["4294967295"]])
def test_a_hexadecimal_id_is_one_subject_whatever_stands_beside_it(name, beside):
    ids, _, names = subject_ids(pa.array([name, *beside]))
    assert ids[0] == subject_id(name)
    assert name in names["name"].to_pylist()
