"""Batches of a rank: rows from the blocks, collated ahead of the step by threads."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np

from ehr_ray.config.sections import DataConfig
from ehr_ray.errors import InputError
from ehr_ray.events.blocks import RowStore
from ehr_ray.family import Batch, Row
from ehr_ray.train.ahead import made_ahead
from ehr_ray.train.backend import Backend
from ehr_ray.train.feed import Steps, on_device, pinned
from ehr_ray.train.order import Indices, Order, micro

Collate = Callable[[Sequence[Row]], Batch]


@dataclass(frozen=True)
class Loader:
    """The model-ready rows of a cohort and how they become batches.

    Args:
        train: rows of the train split.
        tuning: rows of the tuning split; may be empty.
        collate: rows to one batch.
        config: the `data` section.
        seed: seed of the order.
        accumulate: micro-batches per step and rank.
        threads: of this rank, that collate.
    """

    train: RowStore
    tuning: RowStore
    collate: Collate
    config: DataConfig
    seed: int
    accumulate: int = 1
    threads: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over train."""
        return self.order.steps

    @cached_property
    def order(self) -> Order:
        """Which patients of train make up which step."""
        return Order(
            self.train.lengths,
            self.train.block_sizes,
            self.train.shard_blocks,
            batch_size=self.config.batch_size,
            bucket_batches=self.config.bucket_batches,
            shuffle_patients=self.config.shuffle_patients,
            seed=self.seed,
        )

    def check(self, world: int, needs_pairs: str | None = None) -> None:
        """Raise InputError unless every rank and micro-batch gets a patient at every step.

        Two where a setting, `needs_pairs`, compares patients of a batch with each other.
        """
        patients = len(self.train)
        if patients == 0:
            raise InputError("train split: no patient; ingest a cohort with train subjects")
        order, least = self.order, self.accumulate * (1 if needs_pairs is None else 2)
        fewest = order.fewest(world)
        if fewest >= least:
            return
        if order.lanes < world and not order.whole:
            window = order.window_for(world)
            if replace(order, shuffle_patients=window).fewest(world) >= least:
                cost = " (each worker then reads every shard)" if window == patients else ""
                raise InputError(
                    f"data.shuffle_patients={self.config.shuffle_patients} has {patients} train "
                    f"patients in {order.lanes} lanes, fewer than {world} workers; set "
                    f"data.shuffle_patients={window}{cost}, or use fewer workers"
                )
        if fewest < self.accumulate:
            few = f"fewer than {world} workers x {self.accumulate} micro-batches"
            if order.smallest >= world * self.accumulate:
                few = f"of which some of {world} workers have {fewest}, fewer than "
                few += f"{self.accumulate} micro-batches"
            raise InputError(
                f"data.batch_size={self.config.batch_size} over {patients} train patients leaves "
                f"batches of {order.smallest}, {few}; raise data.batch_size or use fewer workers"
            )
        raise InputError(
            f"{needs_pairs} compares the patients of a micro-batch, and data.batch_size="
            f"{self.config.batch_size} leaves some with 1 ({world} workers x "
            f"{self.accumulate}); raise data.batch_size, to hundreds if memory allows"
        )

    def steps(self, step: int, total: int, backend: Backend) -> Steps:
        """Yield the micro-batches of step `step`, `step + 1`, ... to before `total`, on the device.

        An epoch's first are made while the last of the one before are trained.
        """

        def make(micro: list[Sequence[Row]]) -> list[Batch]:
            return [pinned(self.collate(rows), backend.device) for rows in micro]

        read = self._read(step, total, backend.rank, backend.world)
        return on_device(made_ahead(make, read, self.threads), backend.device)

    def train_steps(self, epoch: int, start: int, rank: int, world: int) -> Steps:
        """Yield the micro-batches of each step of an epoch from step `start` of it, on the host."""
        first = epoch * self.steps_per_epoch
        read = self._read(first + start, first + self.steps_per_epoch, rank, world)
        return made_ahead(lambda micro: [*map(self.collate, micro)], read, self.threads)

    def _read(
        self, step: int, total: int, rank: int, world: int
    ) -> Generator[list[Sequence[Row]], None, None]:
        """Yield the rows of the micro-batches of each step."""
        while step < total:
            epoch, start = divmod(step, self.steps_per_epoch)
            last = (epoch + 1) * self.steps_per_epoch >= total
            shares = self._shares(epoch, start, rank, world)
            then = iter(()) if last else self._shares(epoch + 1, 0, rank, world)
            # Rows of the next epoch's first window are made, or on their way, while these are used.
            with contextlib.closing(self.train.read(shares, then)) as rows:
                while step < total and (own := list(islice(rows, self.accumulate))):
                    yield own
                    step += 1

    def _shares(self, epoch: int, start: int, rank: int, world: int) -> Iterator[list[Indices]]:
        """Yield by window the rows of each micro-batch of an epoch from step `start` of it."""
        for window in self.order.windows(epoch, start, rank, world):
            yield [part for step in window for part in micro(step, self.accumulate)]

    def tuning_batches(self, rank: int, world: int) -> Iterator[Batch]:
        """Yield this rank's part of the tuning split, every patient once over all ranks.

        With fewer patients than ranks every rank reads all of them, which leaves means unchanged.
        """
        size = max(1, (self.config.eval_batch_size or self.config.batch_size) // world)
        windows = self._tuning_windows(rank, world, size)
        yield from made_ahead(self.collate, self.tuning.read(windows), self.threads)

    def _tuning_windows(self, rank: int, world: int, size: int) -> Iterator[list[Indices]]:
        """Yield by window a rank's rows of tuning, batch by batch, of like length."""
        count, most = len(self.tuning), self.config.shuffle_patients
        low, high = count * rank // world, count * (rank + 1) // world
        if count <= most:  # dealt by length, so that no rank has more to read
            low, high = 0, count
        for first in range(low, high, most):
            rows = np.arange(first, min(first + most, high))
            rows = rows[np.argsort(self.tuning.lengths[rows], kind="stable")]
            rows = rows[rank::world] if world <= count <= most else rows
            yield [rows[i : i + size] for i in range(0, len(rows), size)]

    def fixed_batches(self, patients: int) -> Iterator[Batch]:
        """Yield so many patients of tuning, evenly spaced: the same on every rank, every time.

        Batches have `data.batch_size` patients or up to twice as many, and never one where there
        are more: what compares patients needs another beside each.
        """
        count = min(patients, len(self.tuning))
        chosen = np.linspace(0, max(0, len(self.tuning) - 1), count).astype(np.int64)
        if not count:
            return
        parts = np.array_split(chosen, max(1, count // max(2, self.config.batch_size)))
        yield from made_ahead(self.collate, self.tuning.read([parts]), self.threads)
