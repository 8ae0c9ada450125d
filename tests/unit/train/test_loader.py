import dataclasses
import itertools
import re
import threading

import numpy as np
import pytest
import torch

from ehr_ray.config.sections import DataConfig
from ehr_ray.errors import InputError
from ehr_ray.events.block_files import write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.loader import Loader


def collate(rows):
    return {"id": torch.tensor([int(row["id"]) for row in rows])}


@pytest.fixture
def make(tmp_path):
    """A loader over numbered patients: make(train=..., tuning=..., batch_size=...)."""

    def build(train=20, tuning=7, accumulate=1, collate=collate, **data):
        stores = []
        for split, count in (("train", train), ("tuning", tuning)):
            rows = [{"id": np.int64(i), "x": np.zeros(i % 5)} for i in range(count)]
            write_block(tmp_path / f"{split}.arrow", rows, chunk=6)
            stores.append(BlockStore([tmp_path / f"{split}.arrow"]))
        config = DataConfig(cohort="x", **data)
        return Loader(*stores, collate=collate, config=config, seed=3, accumulate=accumulate)

    return build


def ids(step):
    return sorted(int(i) for batch in step for i in batch["id"])


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name == "loader"]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("most", [65536, 8])
def test_ranks_together_take_the_same_global_batches_for_any_world(make, world, accumulate, most):
    options = {"batch_size": 7, "shuffle_patients": most}
    alone = [ids(step) for step in make(**options).train_steps(2, 0, 0, 1)]
    loader = make(**options, accumulate=accumulate)
    ranks = [list(loader.train_steps(2, 0, rank, world)) for rank in range(world)]
    assert all(len(step) == accumulate for steps in ranks for step in steps)
    together = [sorted(sum((ids(s) for s in steps), [])) for steps in zip(*ranks, strict=True)]
    assert together == alone
    assert sorted(sum(alone, [])) == list(range(20))
    assert len(alone) == loader.steps_per_epoch == 3


@pytest.mark.parametrize("most", [65536, 8])
def test_an_epoch_continues_at_any_step(make, most):
    loader = make(batch_size=4, shuffle_patients=most)
    whole = [ids(step) for step in loader.train_steps(1, 0, 0, 1)]
    for start in range(6):
        assert [ids(step) for step in loader.train_steps(1, start, 0, 1)] == whole[start:]


@pytest.mark.parametrize("threads", [1, 3])
def test_steps_go_on_from_epoch_to_epoch_the_same_in_any_number_of_threads(make, threads):
    loader = make(batch_size=4, accumulate=2)
    epochs = [step for epoch in range(3) for step in loader.train_steps(epoch, 0, 0, 1)]
    whole = [[batch["id"].tolist() for batch in step] for step in epochs]
    loader = dataclasses.replace(loader, threads=threads)
    for first, total in ((0, 15), (3, 7), (5, 5), (10, 13)):
        steps = loader.steps(first, total, LocalBackend())
        found = [[batch["id"].tolist() for batch in step] for step in steps]
        assert found == whole[first:total]
    assert loader_threads() == []


def test_the_next_epoch_is_made_while_the_last_step_of_this_one_is_trained(make):
    begun = threading.Event()

    def telling(rows):
        made.append(len(rows))
        if len(made) == 2:
            begun.set()
        return collate(rows)

    made = []
    steps = make(batch_size=20, collate=telling).steps(0, 5, LocalBackend())
    assert ids(next(steps)) == list(range(20))  # all of the epoch
    assert begun.wait(60)
    steps.close()


@pytest.mark.parametrize("total", [6, 10, 12])
def test_rows_are_told_of_the_epoch_that_follows_if_any_does(make, total):
    loader, told = make(batch_size=4, shuffle_patients=8), []
    read = loader.train.read

    def telling(windows, then):
        windows, then = list(windows), list(then)
        told.append((windows, then))
        return read(windows, then)

    loader.train.read = telling
    steps = loader.steps(2, total, LocalBackend())
    assert sum(1 for _ in steps) == total - 2
    assert len(told) == -(-total // 5)
    for (_, then), (windows, _) in itertools.pairwise(told):
        assert repr(then) == repr(windows)
    assert told[-1][1] == []


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("most", [65536, 2])
def test_tuning_batches_cover_everyone_once_over_the_ranks(make, world, batch_size, most):
    loader = make(batch_size=batch_size, shuffle_patients=most)
    batches = [b for rank in range(world) for b in loader.tuning_batches(rank, world)]
    assert ids(batches) == list(range(7))
    assert max(len(b["id"]) for b in batches) <= max(1, batch_size // world)


def test_tuning_batches_are_of_eval_batch_size(make):
    loader = make(batch_size=2, eval_batch_size=5)
    assert [len(b["id"]) for b in loader.tuning_batches(0, 1)] == [5, 2]
    assert len(next(loader.train_steps(0, 0, 0, 1))[0]["id"]) == 2


def test_with_fewer_tuning_patients_than_ranks_every_rank_reads_all(make):
    loader = make(tuning=2)
    for rank in range(3):
        assert ids(loader.tuning_batches(rank, 3)) == [0, 1]
    assert list(make(tuning=0).tuning_batches(0, 2)) == []


def test_an_error_in_the_thread_surfaces_at_its_batch(make):
    made = []

    def failing(rows):
        made.append(len(rows))
        if len(made) == 3:
            raise ValueError("row 7 is odd")
        return collate(rows)

    steps = make(batch_size=2, collate=failing).train_steps(0, 0, 0, 1)
    assert len(next(steps)[0]["id"]) == 2
    next(steps)
    with pytest.raises(ValueError, match="row 7 is odd"):
        next(steps)
    assert loader_threads() == []


def test_closing_early_ends_the_thread(make):
    steps = make(batch_size=1).train_steps(0, 0, 0, 1)
    next(steps)
    assert len(loader_threads()) == 1
    steps.close()
    assert loader_threads() == []


def test_a_loader_makes_only_a_few_batches_ahead(make):
    made = []

    def counting(rows):
        made.append(len(rows))
        return collate(rows)

    steps = make(batch_size=1, collate=counting).train_steps(0, 0, 0, 1)
    next(steps)
    steps.close()
    assert len(made) <= 5


@pytest.mark.parametrize(
    ("changes", "world"), [({"batch_size": 2}, 3), ({"batch_size": 4, "accumulate": 3}, 2)]
)
def test_batches_smaller_than_workers_and_micro_batches_are_refused(make, changes, world):
    loader = make(**changes)
    loader.check(1)
    with pytest.raises(InputError, match=r"data\.batch_size=\d.* raise data\.batch_size"):
        loader.check(world)


def test_the_check_lets_through_just_what_gives_everyone_a_patient(make):
    for train in range(1, 30):
        loader = make(train=train, batch_size=8)
        smallest = min(len(ids(step)) for step in loader.train_steps(0, 0, 0, 1))
        loader.check(smallest)
        with pytest.raises(InputError):
            loader.check(smallest + 1)


def test_more_workers_than_lanes_are_refused(make):
    loader = make(train=20, batch_size=8, shuffle_patients=10)
    assert (loader.order.smallest, loader.order.lanes) == (6, 4)
    loader.check(4)
    with pytest.raises(
        InputError,
        match=r"shuffle_patients=10 has 20 .* in 4 lanes.*; set data\.shuffle_patients=20 \(each",
    ):
        loader.check(5)
    with pytest.raises(InputError, match=r"^data\.batch_size=8 over 20 "):
        loader.check(7)


@dataclasses.dataclass
class MadeUpRows:
    """What an order asks of the rows of a split: so many, in shards of as many each."""

    lengths: np.ndarray
    shard: int

    def __len__(self):
        return len(self.lengths)

    @property
    def block_sizes(self):
        return np.full(len(self) // self.shard, self.shard)

    @property
    def shard_blocks(self):
        return np.ones(len(self) // self.shard, np.int64)


@pytest.mark.parametrize("world", [17, 100, 1000])
@pytest.mark.parametrize("batch", [1, 1.3, 64])
@pytest.mark.parametrize(
    ("patients", "shard"), [(100_000, 1000), (1_000_000, 1000), (10_000_000, 10_000)]
)
@pytest.mark.parametrize(("accumulate", "setting"), [(1, None), (2, "model.x=y")])
def test_who_does_what_a_refusal_says_has_a_run_that_starts(
    patients, shard, batch, world, accumulate, setting
):
    """The window it names is accepted as it stands, or after the batch that it asks for first."""
    rows = MadeUpRows(np.zeros(patients, np.int8), shard)
    config = DataConfig(cohort="x", batch_size=int(batch * world))
    said = []
    for _ in range(14):
        loader = Loader(rows, rows, collate, config, seed=3, accumulate=accumulate)
        try:
            loader.check(world, setting)
            break
        except InputError as error:
            said.append(str(error))
        if named := re.search(r"; set data\.shuffle_patients=(\d+)", said[-1]):
            assert int(named[1]) > config.shuffle_patients
            config = dataclasses.replace(config, shuffle_patients=int(named[1]))
        else:
            assert "; raise data.batch_size" in said[-1]
            config = dataclasses.replace(config, batch_size=2 * config.batch_size)
    else:
        pytest.fail(f"still refused: {said}")
    windows = [named for named in said if "; set data.shuffle_patients=" in named]
    assert windows == said[-1:] * len(windows)  # the last one, if any: it is accepted


def test_at_defaults_a_hundred_workers_are_told_the_window_they_need():
    rows = MadeUpRows(np.zeros(10_000_000, np.int8), 10_000)
    loader = Loader(rows, rows, collate, DataConfig(cohort="x", batch_size=6400), seed=3)
    loader.check(16)
    with pytest.raises(InputError) as refused:
        loader.check(100)
    assert str(refused.value) == (
        "data.shuffle_patients=65536 has 10000000 train patients in 16 lanes, fewer than 100 "
        "workers; set data.shuffle_patients=1280000, or use fewer workers"
    )


def test_an_empty_train_split_is_refused(make):
    with pytest.raises(InputError, match="train split: no patient"):
        make(train=0).check(1)


def test_fixed_batches_are_the_same_patients_every_time(make):
    """Evenly spaced over tuning, and no more than there are."""
    loader = make(batch_size=2)
    first, again = ([ids([batch]) for batch in loader.fixed_batches(4)] for _ in range(2))
    assert first == again == [[0, 2], [4, 6]]
    assert sorted(sum(map(list, (ids([b]) for b in loader.fixed_batches(99))), [])) == list(
        range(7)
    )
    assert list(loader.fixed_batches(0)) == []
    assert list(make(tuning=0).fixed_batches(4)) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 32])
def test_in_fixed_batches_nobody_is_alone_who_need_not_be(make, batch_size):
    for patients in range(2, 8):
        sizes = [len(b["id"]) for b in make(batch_size=batch_size).fixed_batches(patients)]
        assert sum(sizes) == patients
        assert min(sizes) > 1
        assert max(sizes) < 2 * max(2, batch_size)
    assert [len(b["id"]) for b in make(batch_size=batch_size).fixed_batches(1)] == [1]


@pytest.mark.parametrize(
    ("changes", "world"), [({"batch_size": 1}, 1), ({"batch_size": 4, "accumulate": 2}, 2)]
)
def test_what_compares_patients_needs_two_in_a_micro_batch(make, changes, world):
    loader = make(**changes)
    loader.check(world)
    with pytest.raises(InputError, match=r"^model\.x=y compares .*; raise data\.batch_size"):
        loader.check(world, "model.x=y")
    make(batch_size=2 * world, train=20 * world).check(world, "model.x=y")
