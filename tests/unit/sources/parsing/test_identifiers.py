import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.sources.parsing.identifiers import HASHED_FROM, subject_id, subject_ids


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
        assert empty == (not (name or "").strip())
        if not empty:
            assert sid == subject_id(name)
            assert ((sid, name) in pairs) == (sid >= HASHED_FROM)


def test_whole_floats_are_integers():
    ids, blank, mapping = subject_ids(pa.array([276363.0, None, 2.0]))
    assert ids[~blank].tolist() == [276363, 2]
    assert len(mapping) == 0


def test_integer_columns_keep_64_bits():
    ids, blank, _ = subject_ids(pa.chunked_array([[2**62 - 1, None], [-3]]))
    assert ids[~blank].tolist() == [2**62 - 1, -3]
    assert ids.dtype == np.int64


def test_integers_in_the_range_of_hashes_are_hashed():
    ids, _, mapping = subject_ids(pa.array([2**63 - 1, 5]))
    assert ids.tolist() == [subject_id(str(2**63 - 1)), 5]
    assert mapping["name"].to_pylist() == [str(2**63 - 1)]
