"""Which patients make up which step: a pure function of (seed, epoch), the same for any world.

A cohort of at most `shuffle_patients` is one window, and all of it is shuffled. A larger one is
divided into lanes: rows that lie side by side, as many in each. A step takes its patients from all
lanes in turn, and a rank has some lanes for its own, so that it reads its part of the cohort alone,
window by window; how many ranks there are changes nothing in a step. What is held is of a window
and of the blocks of a rank's lanes, whatever the number of patients.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
FEWEST: Final = 16
"""Lanes of a large cohort, if a batch has as many patients. More where shards are small: a stream
reads a shard once for each window of its lane, so a lane's window should be a shard."""
MOST: Final = 1024


def steps_in_epoch(num_patients: int, batch_size: int) -> int:
    """Return the optimizer steps of one pass: every patient once, batches as even as can be."""
    return -(-num_patients // batch_size)


@dataclass(frozen=True)
class Order:
    """The order of the rows of a split.

    Each row is in exactly one step of an epoch. In a lane shards are shuffled, and blocks within
    each, then rows within a window. `bucket_batches` batches of rows are sorted by length together,
    in each lane, so that a batch pads little, and the batches are shuffled again. The remainder is
    spread over all batches rather than left as a short one.

    Args:
        lengths: elements of each row, int64 [rows]; only those of a window are looked at.
        block_sizes: rows of each block, int64 [blocks].
        shard_blocks: blocks of each shard, int64 [shards].
        batch_size: patients of a step, at most.
        bucket_batches: batches whose rows are sorted by length together.
        shuffle_patients: rows of a window, of all lanes together.
        seed: of the order.
    """

    lengths: Indices
    block_sizes: Indices
    shard_blocks: Indices
    batch_size: int
    bucket_batches: int
    shuffle_patients: int
    seed: int

    @property
    def rows(self) -> int:
        """Rows of an epoch."""
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return steps_in_epoch(self.rows, self.batch_size)

    @property
    def smallest(self) -> int:
        """Patients of the smallest batch."""
        return self.rows // max(1, self.steps)

    @property
    def whole(self) -> bool:
        """Whether the split is one window, which has no lanes."""
        return self.rows <= self.shuffle_patients

    @cached_property
    def lanes(self) -> int:
        """Lanes of this split, a power of 2; 1 where it is one window."""
        if self.whole:
            return 1
        shards = int(self.shuffle_patients * len(self.shard_blocks) / self.rows)  # of a window
        lanes = min(self.smallest, MOST, max(FEWEST, shards))
        return 1 << (lanes.bit_length() - 1)

    def window_for(self, world: int) -> int:
        """Return the least `shuffle_patients` with a lane for each of more ranks than have one now.

        All rows, one window, where a batch has too few patients for so many lanes.
        """
        lanes = 1 << (world - 1).bit_length()
        if lanes > min(self.smallest, MOST):
            return self.rows
        return min(self.rows, -(-lanes * self.rows // len(self.shard_blocks)))

    def fewest(self, world: int) -> int:
        """Return the fewest patients that a step has for a rank; 0 where some may have none."""
        if self.whole:
            return self.smallest // world
        if world > self.lanes:
            return 0
        turns, more = divmod(self.smallest, self.lanes)
        lane = np.arange(world + 1) * self.lanes // world
        rank = np.searchsorted(lane, self._turn, "right") - 1
        own = rank == np.arange(world)[:, None]  # [ranks, lanes in turn]
        sums = np.cumsum(np.concatenate([np.zeros((world, 1), int), own, own], axis=1), axis=1)
        few = (sums[:, more : more + self.lanes] - sums[:, : self.lanes]).min()
        return int(turns * np.diff(lane).min() + few)

    def windows(
        self, epoch: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[list[Indices]]:
        """Yield a rank's rows of each step of an epoch from step `start` of it, by window.

        Those of a step ascend by length. The steps of all ranks together are those of one.
        """
        lanes, last = self.lanes, self.steps
        if start >= last:
            return
        own = range(1) if self.whole else range(lanes * rank // world, lanes * (rank + 1) // world)
        # Places of draws: (lane + 1, 0) is for the order of a lane, (lane + 1, window + 1) for its
        # rows in a window, (0, window + 1) for the batches of a window, which all ranks draw alike.
        random = _random(self.seed, epoch, alone=self.whole)
        order = [self._order(lane, random(lane + 1, 0)) for lane in own]
        size = last if self.whole else max(1, self.shuffle_patients // self.batch_size)
        # A lane has few rows a step, so more steps are sorted together: as many rows of each.
        bucket = self.bucket_batches * lanes
        for window in range(start // size, -(-last // size)):
            first, end = window * size, min(last, window * size + size)
            bounds = self._bounds(first, end)
            # Row r of an epoch is of the lane whose turn is r % lanes: so many come before a bound.
            own_bounds = [(bounds - self._turn[lane] + lanes - 1) // lanes for lane in own]
            rows = [
                random(lane + 1, window + 1).permutation(_taken(*order[i], places[0], places[-1]))
                for i, (lane, places) in enumerate(zip(own, own_bounds, strict=True))
            ]
            steps: list[Indices] = []
            shuffle = random(0, window + 1)
            for at in range(0, end - first, bucket):
                steps += self._bucket(rows, own_bounds, at, bucket, shuffle)
            steps = steps[max(0, start - first) :]
            if world > 1 and self.whole:
                steps = [dealt(step, rank, world) for step in steps]
            yield steps

    def _bounds(self, first: int, end: int) -> Indices:
        """Return the rows of the epoch before each step from `first` to `end`, both included."""
        bounds = (np.arange(first, end + 1) * (self.rows / self.steps)).round().astype(np.int64)
        if end == self.steps:  # whatever floats made of it
            bounds[-1] = self.rows
        return bounds

    def _order(self, lane: int, random: np.random.Generator) -> tuple[Indices, Indices, Indices]:
        """Return first rows, sizes and ends of the parts of a lane, in an order of an epoch.

        Of blocks at its borders a lane has a part.
        """
        low, high = self._lane_ends[lane : lane + 2]
        ends = self._block_ends
        blocks = np.arange(np.searchsorted(ends, low, "right"), np.searchsorted(ends, high) + 1)
        shards = np.searchsorted(self._shard_ends, blocks, "right")
        groups = np.split(blocks, np.flatnonzero(np.diff(shards)) + 1)
        chosen = [groups[i] for i in random.permutation(len(groups))]
        mixed = np.concatenate([random.permutation(g) if len(g) > 1 else g for g in chosen])
        starts = np.maximum(ends[mixed] - self.block_sizes[mixed], low)
        sizes = np.minimum(ends[mixed], high) - starts
        return starts, sizes, np.cumsum(sizes)

    def _bucket(
        self,
        rows: list[Indices],
        bounds: list[Indices],
        at: int,
        size: int,
        random: np.random.Generator,
    ) -> list[Indices]:
        """Return the steps `at` to `at + size` of a window, their rows sorted, then mixed."""
        parts, steps = [], []
        for own, places in zip(rows, bounds, strict=True):
            here = places[at : at + size + 1] - places[0]
            part = own[here[0] : here[-1]]
            parts.append(part[np.argsort(self.lengths[part], kind="stable")])
            steps.append(np.repeat(np.arange(len(here) - 1), np.diff(here)))
        count = len(bounds[0][at : at + size + 1]) - 1
        chosen, step = np.concatenate(parts), np.concatenate(steps)
        # Within a step by length again, over all lanes: `dealt` relies on it.
        chosen = chosen[np.lexsort((self.lengths[chosen], step))]
        batches = np.split(chosen, np.cumsum(np.bincount(step, minlength=count))[:-1])
        return [batches[i] for i in random.permutation(count)]

    @cached_property
    def _turn(self) -> Indices:
        """The place of each lane in its turn, int64 [lanes]; the lane of each place as well.

        Bits are reversed: lanes that lie side by side, which are a rank's, come far apart, so that
        a batch that ends within a turn has as many of each rank.
        """
        turn, lanes = np.zeros(1, np.int64), 1
        while lanes < self.lanes:
            turn, lanes = np.concatenate([2 * turn, 2 * turn + 1]), 2 * lanes
        return turn

    @cached_property
    def _lane_ends(self) -> Indices:
        """The first row of each lane, and the end of the last, int64 [lanes + 1]."""
        size, more = divmod(self.rows, self.lanes)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(size + (self._turn < more))])

    @cached_property
    def _block_ends(self) -> Indices:
        return np.cumsum(self.block_sizes)

    @cached_property
    def _shard_ends(self) -> Indices:
        return np.cumsum(self.shard_blocks)


def dealt(batch: Indices, rank: int, world: int) -> Indices:
    """Return one rank's part of a batch that ascends by length.

    From the longest on patients are dealt back and forth, so that no rank has the longer one of
    every few: ranks wait for the one with most tokens. Lengths themselves are not asked: models
    read a long stay in part, each in its own way.
    """
    row, place = np.divmod(np.arange(len(batch))[::-1], world)
    return batch[np.where(row % 2, world - 1 - place, place) == rank]


def micro(rows: Indices, accumulate: int) -> list[Indices]:
    """Return a rank's part of a step as micro-batches."""
    return [rows[i::accumulate] for i in range(accumulate)]


def _taken(starts: Indices, sizes: Indices, ends: Indices, low: int, high: int) -> Indices:
    """Return the rows at places `low` to `high` of parts that follow each other."""
    first, last = np.searchsorted(ends, low, "right"), np.searchsorted(ends, high)
    parts = slice(first, last + 1)
    before = ends[parts] - sizes[parts]
    skip = np.maximum(low - before, 0)
    count = np.minimum(high - before, sizes[parts]) - skip
    offsets = np.repeat(starts[parts] + skip - (np.cumsum(count) - count), count)
    rows: Indices = offsets + np.arange(count.sum())
    return rows


def _random(seed: int, epoch: int, *, alone: bool) -> Callable[[int, int], np.random.Generator]:
    """Return what gives the generator of a place; with one lane all draw from one, in turn."""

    def at(lane: int, window: int) -> np.random.Generator:
        # A place has 2**128 draws for its own.
        return np.random.Generator(
            np.random.Philox(key=[seed, epoch], counter=[0, 0, window, lane])
        )

    one = at(0, 0)
    return (lambda _lane, _window: one) if alone else at
