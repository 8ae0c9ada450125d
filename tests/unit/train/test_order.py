import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.train.order import Order, dealt, micro, steps_in_epoch

OPTIONS = {"batch_size": 4, "bucket_batches": 3, "shuffle_patients": 30, "seed": 1}


def batches_of(blocks, lengths=None, **changes):
    return sum(windows_of(blocks, None, lengths, **changes), [])


def order_of(blocks, shards=None, lengths=None, **changes):
    """The order of a split; without `shards` each block is one."""
    blocks = np.array(blocks, np.int64)
    shards = np.ones(len(blocks), np.int64) if shards is None else np.array(shards, np.int64)
    if lengths is None:
        lengths = np.random.default_rng(0).integers(0, 50, blocks.sum())
    return Order(np.asarray(lengths), blocks, shards, **{**OPTIONS, **changes})


def windows_of(blocks, shards=None, lengths=None, epoch=0, **changes):
    return list(order_of(blocks, shards, lengths, **changes).windows(epoch))


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


@settings(deadline=None, max_examples=150)
@given(blocks, st.integers(1, 30), st.integers(1, 60), st.integers(1, 5), st.integers(0, 30))
def test_ranks_together_have_the_steps_of_one_from_any_step_on(
    blocks, batch_size, window, world, start
):
    order = order_of(blocks, batch_size=batch_size, shuffle_patients=window)
    whole = lists(sum(order.windows(2), []))
    if order.fewest(world) == 0:
        return
    ranks = [sum(order.windows(2, start, rank, world), []) for rank in range(world)]
    together = [sorted(np.concatenate(parts).tolist()) for parts in zip(*ranks, strict=True)]
    assert together == [sorted(step) for step in whole[start:]]
    assert min((len(step) for rank in ranks for step in rank), default=99) >= order.fewest(world)
    for steps in ranks:
        assert all((np.diff(order.lengths[step]) >= 0).all() for step in steps)


def large(shards=400, per=250, **changes):
    """100,000 patients, of which a window has a tenth."""
    lengths = np.random.default_rng(1).gamma(8, 50, shards * per).astype(int)
    options = {"batch_size": 64, "bucket_batches": 16, "shuffle_patients": 10_000}
    return order_of([per] * shards, lengths=lengths, **{**options, **changes})


def test_a_rank_reads_its_own_part_of_a_large_cohort_the_same_shards_each_epoch():
    order = large()
    assert order.lanes == 32  # a window has 40 shards
    for world in (2, 4, 7):
        files = 0
        for rank in range(world):
            touched = [
                {
                    int(row) // 250
                    for step in sum(order.windows(epoch, 0, rank, world), [])
                    for row in step
                }
                for epoch in (0, 1)
            ]
            assert touched[0] == touched[1]
            files += len(touched[0])
        assert 400 <= files <= 400 + world - 1  # two ranks read of one where their parts meet


def test_a_window_reads_few_shards_and_each_shard_few_windows():
    """Blocks of a shard come together, or every window would read every shard."""
    shards = [10] * 120
    order = order_of([25] * 1200, shards, batch_size=64, shuffle_patients=16_000)
    assert order.lanes == 32  # of which a window has two shards each
    touched = [{int(row) // 250 for row in np.concatenate(w)} for w in order.windows(0)]
    assert len(touched) == 2
    of_lane = [{int(row) // 250 for row in np.concatenate(w)} for w in order.windows(0, 0, 0, 32)]
    assert sum(map(len, of_lane)) <= 4


@pytest.mark.parametrize(
    ("shards", "per", "batch_size", "lanes"),
    [
        (400, 250, 128, 32),  # a window has 40 shards
        (2000, 50, 512, 128),  # 200
        (2000, 50, 100, 64),  # as a batch has 100 patients
        (10, 10_000, 4096, 16),  # of few large shards
        (20_000, 5, 4096, 1024),
        (400, 250, 1, 1),
        (39, 250, 64, 1),  # a window
    ],
)
def test_lanes_are_of_the_data_alone_and_as_many_as_a_window_has_shards(
    shards, per, batch_size, lanes
):
    assert large(shards, per, batch_size=batch_size).lanes == lanes


def test_batches_of_a_large_cohort_pad_little_and_ranks_have_as_many_tokens():
    order = large(shuffle_patients=50_000)
    steps = sum(order.windows(0), [])
    longest = sum(order.lengths[step].max() * len(step) for step in steps)
    assert 1 - order.lengths.sum() / longest < 0.07  # in any order .45, one window .08
    ranks = [sum(order.windows(0, 0, rank, 4), []) for rank in range(4)]
    tokens = np.array([[order.lengths[step].sum() for step in steps] for steps in ranks])
    assert tokens.max(0).sum() / tokens.mean(0).sum() < 1.04


@pytest.mark.parametrize("batch_size", [10, 48, 64, 100])
def test_ranks_have_as_many_patients_of_each_step_as_can_be(batch_size):
    order = large(batch_size=batch_size)
    for world in (1, 2, 3, 4, 8):
        ranks = [sum(order.windows(0, 0, rank, world), []) for rank in range(world)]
        sizes = np.array([[len(step) for step in steps] for steps in ranks])
        assert order.fewest(world) <= sizes.min() <= order.fewest(world) + 1
        if world != 3:  # which no power of 2 is divided by
            assert (sizes.max(0) - sizes.min(0)).max() <= 1 + (batch_size == 100)
    assert order.fewest(order.lanes + 1) == 0


def test_without_lanes_a_large_cohort_is_read_in_windows_all_the_same():
    order = large(batch_size=1)
    assert [len(window) for window in order.windows(0)] == [10_000] * 10


def test_the_steps_of_a_large_cohort_mix_it():
    order = large()
    steps = sum(order.windows(0), [])
    assert np.mean([len({int(row) // 250 for row in step}) for step in steps]) > 40
    again = sum(order.windows(1), [])
    pairs = [
        {(a, b) for s in some[:200] for a in s.tolist() for b in s.tolist() if a < b}
        for some in (steps, again)
    ]
    assert len(pairs[0] & pairs[1]) < 0.05 * len(pairs[0])
    lengths = [int(order.lengths[step].mean()) for step in steps[:50]]
    assert lengths != sorted(lengths)


def test_the_order_of_a_huge_cohort_looks_at_the_rows_of_a_window_alone():
    class Told(np.ndarray):
        """Lengths that count how many of them were looked at."""

        seen = 0

        def __getitem__(self, rows):
            Told.seen += np.size(rows)
            return np.zeros(np.shape(rows), np.int64)

    lengths = np.zeros(50_000_000, np.int8).view(Told)
    order = Order(lengths, np.full(200_000, 250), np.full(5000, 40), 64, 16, 65536, 1)
    first = next(order.windows(0, 500_000, 1, 4))
    assert len(first) == 1024 - 500_000 % 1024
    assert Told.seen <= 2 * 65536 / 4 + 64


def test_a_cohort_of_small_shards_has_the_order_it_always_had():
    assert lists(batches_of([3, 2, 4], [5, 1, 4, 2, 3, 9, 8, 7, 6], shuffle_patients=9)) == [
        [1, 3, 4],
        [7, 6, 5],
        [2, 0, 8],
    ]


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_shares_of_all_ranks_make_the_batch(size, world, accumulate):
    batch = np.random.default_rng(size).permutation(100)[:size]
    parts = [p for rank in range(world) for p in micro(dealt(batch, rank, world), accumulate)]
    assert len(parts) == world * accumulate
    assert sorted(np.concatenate(parts).tolist()) == sorted(batch.tolist())
    if size >= world * accumulate:
        assert min(len(part) for part in parts) > 0


@pytest.mark.parametrize("world", [2, 4])
def test_shares_of_a_batch_sorted_by_length_have_as_many_tokens_each(world):
    length = np.sort(np.random.default_rng(0).lognormal(6, 1, (200, 32)), axis=1)
    shares = [dealt(np.arange(32), rank, world) for rank in range(world)]
    tokens = np.stack([length[:, part].sum(1) for part in shares])
    # One patient in every `world`, the same places for each rank, would give 1.10 and 1.33.
    slowest = tokens.max(0).sum() / tokens.mean(0).sum()
    assert slowest < {2: 1.06, 4: 1.22}[world]


def test_of_patients_that_do_not_divide_the_one_rank_has_one_more_and_not_the_longest():
    parts = [dealt(np.arange(7), rank, 2).tolist() for rank in range(2)]
    assert parts == [[2, 3, 6], [0, 1, 4, 5]]


@given(st.integers(1, 70), st.integers(1, 9))
def test_ranks_have_as_many_patients_but_for_one(size, world):
    sizes = [len(dealt(np.arange(size), rank, world)) for rank in range(world)]
    assert max(sizes) - min(sizes) <= 1
