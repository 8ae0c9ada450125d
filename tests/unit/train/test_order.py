import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.train.order import epoch_windows, share, steps_in_epoch

OPTIONS = {"batch_size": 4, "bucket_batches": 3, "shuffle_patients": 30, "seed": 1, "epoch": 0}


def batches_of(blocks, lengths=None, **changes):
    return sum(windows_of(blocks, None, lengths, **changes), [])


def windows_of(blocks, shards=None, lengths=None, **changes):
    """The windows of an epoch; without `shards` each block is one."""
    blocks = np.array(blocks, np.int64)
    shards = np.ones(len(blocks), np.int64) if shards is None else np.array(shards, np.int64)
    if lengths is None:
        lengths = np.random.default_rng(0).integers(0, 50, blocks.sum())
    return epoch_windows(np.asarray(lengths), blocks, shards, **{**OPTIONS, **changes})


def lists(batches):
    return [batch.tolist() for batch in batches]


blocks = st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(lambda b: sum(b) > 0)


@settings(deadline=None, max_examples=150)
@given(
    blocks,
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 60),
    st.integers(0, 2**63 - 1),
    st.integers(0, 9),
)
def test_every_patient_is_in_exactly_one_batch_of_even_size(
    blocks, batch_size, bucket, window, seed, epoch
):
    options = {"batch_size": batch_size, "bucket_batches": bucket, "shuffle_patients": window}
    batches = batches_of(blocks, seed=seed, epoch=epoch, **options)
    total = sum(blocks)
    assert sorted(np.concatenate(batches).tolist()) == list(range(total))
    assert len(batches) == steps_in_epoch(total, batch_size)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) == total // len(batches)


def test_the_order_is_a_function_of_seed_and_epoch():
    same = lists(batches_of([30, 30]))
    assert lists(batches_of([30, 30])) == same
    assert lists(batches_of([30, 30], seed=2)) != same
    assert lists(batches_of([30, 30], epoch=1)) != same


def test_the_order_ignores_the_global_generator():
    same = lists(batches_of([30]))
    np.random.seed(3)
    assert lists(batches_of([30])) == same


def test_patients_are_shuffled_across_the_cohort():
    first = np.concatenate(batches_of([100], shuffle_patients=100, bucket_batches=1))
    assert np.abs(np.corrcoef(first, np.arange(100))[0, 1]) < 0.4


def test_batches_hold_patients_of_like_length_and_come_in_mixed_order():
    lengths = np.random.default_rng(1).permutation(64)
    batches = batches_of([64], lengths, batch_size=8, bucket_batches=8, shuffle_patients=64)
    spans = [np.ptp(lengths[batch]) for batch in batches]
    assert spans == [7] * 8
    starts = [lengths[batch].min() for batch in batches]
    assert starts != sorted(starts)
    mixed = batches_of([64], lengths, batch_size=8, bucket_batches=1, shuffle_patients=64)
    assert np.mean([np.ptp(lengths[batch]) for batch in mixed]) > 30


def test_large_cohorts_are_read_in_windows_of_whole_blocks():
    blocks = [10] * 10
    options = {"batch_size": 20, "bucket_batches": 1, "shuffle_patients": 20}
    batches = batches_of(blocks, **options)
    touched = [sorted(set((batch // 10).tolist())) for batch in batches]
    assert all(len(blocks) == 2 for blocks in touched)
    assert sorted(sum(touched, [])) == list(range(10))
    assert touched != sorted(touched)


def test_a_window_reads_few_shards_and_each_shard_few_windows():
    """Blocks of a shard come together, or every window would read every shard."""
    shards, options = [10] * 12, {"batch_size": 20, "bucket_batches": 1, "shuffle_patients": 200}
    windows = windows_of([10] * 120, shards, **options)
    assert len(windows) == 6
    touched = [sorted({int(patient) // 100 for patient in np.concatenate(w)}) for w in windows]
    assert all(len(shards) == 2 for shards in touched)
    assert sorted(sum(touched, [])) == list(range(12))
    first = np.concatenate(windows[0]) // 10
    assert np.abs(np.diff(first)).max() > 2  # blocks of both, mixed


def test_a_cohort_of_small_shards_has_the_order_it_always_had():
    assert lists(batches_of([3, 2, 4], [5, 1, 4, 2, 3, 9, 8, 7, 6], shuffle_patients=5)) == [
        [1, 3, 4],
        [2, 0, 8],
        [7, 6, 5],
    ]


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_shares_of_all_ranks_make_the_batch(size, world, accumulate):
    batch = np.random.default_rng(size).permutation(100)[:size]
    parts = [part for rank in range(world) for part in share(batch, rank, world, accumulate)]
    assert len(parts) == world * accumulate
    assert sorted(np.concatenate(parts).tolist()) == sorted(batch.tolist())
    if size >= world * accumulate:
        assert min(len(part) for part in parts) > 0


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_shares_of_a_batch_sorted_by_length_have_as_many_tokens_each(world, accumulate):
    length = np.sort(np.random.default_rng(0).lognormal(6, 1, (200, 32)), axis=1)
    shares = [share(np.arange(32), rank, world, accumulate) for rank in range(world)]
    tokens = np.stack([length[:, np.concatenate(parts)].sum(1) for parts in shares])
    # One patient in every `world`, the same places for each rank, would give 1.10 and 1.33.
    slowest = tokens.max(0).sum() / tokens.mean(0).sum()
    assert slowest < {2: 1.06, 4: 1.22}[world]


def test_of_patients_that_do_not_divide_the_one_rank_has_one_more_and_not_the_longest():
    parts = [share(np.arange(7), rank, 2)[0].tolist() for rank in range(2)]
    assert parts == [[2, 3, 6], [0, 1, 4, 5]]


@given(st.integers(1, 70), st.integers(1, 9))
def test_ranks_have_as_many_patients_but_for_one(size, world):
    sizes = [len(share(np.arange(size), rank, world)[0]) for rank in range(world)]
    assert max(sizes) - min(sizes) <= 1
