import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.sources.splits import (
    BUCKET_BYTES,
    MOST_BUCKETS,
    NUM_BUCKETS,
    SplitPolicy,
    assign_buckets,
    assign_splits,
    buckets_for,
    parse_splits,
    sample_positions,
)

MASK = 2**64 - 1


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


ids = st.integers(-(2**63), 2**63 - 1)


@given(st.lists(ids, min_size=1), st.integers(-(2**63), 2**63 - 1))
def test_split_equals_plain_python_integers(subjects, seed):
    policy = SplitPolicy((0.5, 0.25, 0.25), seed)
    expected = []
    for subject in subjects:
        u = (mix((subject & MASK) ^ mix(seed & MASK)) >> 11) / 2**53
        expected.append(0 if u < 0.5 else 1 if u < 0.75 else 2)
    assert assign_splits(np.array(subjects, np.int64), policy).tolist() == expected


@given(st.lists(ids, min_size=1, unique=True), st.integers(0, 99))
def test_a_subject_stays_where_it_is_whoever_else_is_there(subjects, seed):
    policy = SplitPolicy(seed=seed)
    together = assign_splits(np.array(subjects, np.int64), policy)
    alone = [assign_splits(np.array([s], np.int64), policy)[0] for s in subjects]
    assert together.tolist() == alone


def test_the_hash_is_the_same_in_every_version():
    splits = assign_splits(np.arange(20), SplitPolicy(seed=7))
    assert splits.tolist() == [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 0, 2, 1, 0, 0, 0, 0, 0]


def test_shares_are_met_and_the_seed_changes_who():
    subjects = np.arange(100_000)
    first, second = (assign_splits(subjects, SplitPolicy(seed=s)) for s in (0, 1))
    np.testing.assert_allclose(np.bincount(first) / 1e5, (0.8, 0.1, 0.1), atol=0.005)
    assert 0.3 < np.mean(first != second) < 0.37


def test_buckets_are_even_within_every_split():
    subjects = np.arange(400_000)
    held_out = subjects[assign_splits(subjects, SplitPolicy()) == 2]
    counts = np.bincount(assign_buckets(held_out), minlength=NUM_BUCKETS)
    assert counts.min() > 0
    assert counts.max() < 35


def test_all_in_one_split():
    policy = parse_splits("all:held_out", 3)
    assert set(assign_splits(np.arange(1000), policy).tolist()) == {2}
    assert not policy.keep_source


def test_a_share_of_zero_stays_empty():
    policy = parse_splits("0.7,0.3,0", 0)
    assert set(assign_splits(np.arange(100_000), policy).tolist()) == {0, 1}


@pytest.mark.parametrize(
    "text", ["0.8,0.2", "0.8,0.1,0.2", "a,b,c", "1.2,-0.1,-0.1", "all:valid", "nan,1,0"]
)
def test_bad_splits_are_refused(text):
    with pytest.raises(InputError, match="--splits"):
        parse_splits(text, 0)


def test_a_sample_is_nested_and_independent_of_split_and_bucket():
    subjects = np.arange(1_000_000, dtype=np.int64)
    position = sample_positions(subjects)
    assert 0 <= position.min() <= position.max() < 1
    tenth = position < 0.1
    assert abs(tenth.mean() - 0.1) < 0.003
    train = assign_splits(subjects, SplitPolicy((0.5, 0.25, 0.25))) == 0
    assert abs(train[tenth].mean() - 0.5) < 0.005
    assert abs((assign_buckets(subjects)[tenth] < NUM_BUCKETS // 2).mean() - 0.5) < 0.005
    assert (sample_positions(subjects[::-1]) == position[::-1]).all()


def test_a_table_of_splits_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--splits .*s\.parquet: no such file"):
        parse_splits(str(tmp_path / "s.parquet"), 0)


def test_buckets_are_a_power_of_two_that_follows_the_size():
    sizes = [0, 1, BUCKET_BYTES * NUM_BUCKETS, BUCKET_BYTES * NUM_BUCKETS + 1, 10**13, 10**18]
    assert [buckets_for(size) for size in sizes] == [4096, 4096, 4096, 8192, 16384, 16384]
    ids = np.arange(200_000)
    many = assign_buckets(ids, MOST_BUCKETS)
    assert many.max() > NUM_BUCKETS
    np.testing.assert_array_equal(many % NUM_BUCKETS, assign_buckets(ids))
