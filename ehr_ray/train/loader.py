"""Batches of a rank: rows from the blocks, collated ahead of the step by threads."""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ehr_ray.config.sections import DataConfig
from ehr_ray.errors import InputError
from ehr_ray.events.blocks import RowStore
from ehr_ray.family import Batch, Row
from ehr_ray.train.ahead import made_ahead
from ehr_ray.train.backend import Backend
from ehr_ray.train.feed import Steps, on_device, pinned
from ehr_ray.train.order import Indices, epoch_windows, share, steps_in_epoch

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
        return steps_in_epoch(len(self.train), self.config.batch_size)

    def check(self, world: int, needs_pairs: str | None = None) -> None:
        """Raise InputError unless every rank and micro-batch gets a patient at every step.

        Two where a setting, `needs_pairs`, compares patients of a batch with each other.
        """
        patients, parts = len(self.train), world * self.accumulate
        if patients == 0:
            raise InputError("train split: no patient; ingest a cohort with train subjects")
        smallest = patients // self.steps_per_epoch
        if smallest < parts:
            raise InputError(
                f"data.batch_size={self.config.batch_size} over {patients} train patients leaves "
                f"batches of {smallest}, fewer than {world} workers x {self.accumulate} "
                "micro-batches; raise data.batch_size or use fewer workers"
            )
        if needs_pairs is not None and smallest < 2 * parts:
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
            shares = self._shares(*divmod(step, self.steps_per_epoch), rank, world)
            with contextlib.closing(self.train.read(shares)) as rows:  # a stream ends with an epoch
                while step < total and (micro := list(islice(rows, self.accumulate))):
                    yield micro
                    step += 1

    def _shares(self, epoch: int, start: int, rank: int, world: int) -> list[list[Indices]]:
        """Return by window the rows of each micro-batch of an epoch from step `start` of it."""
        windows = epoch_windows(
            self.train.lengths,
            self.train.block_sizes,
            self.train.shard_blocks,
            batch_size=self.config.batch_size,
            bucket_batches=self.config.bucket_batches,
            shuffle_patients=self.config.shuffle_patients,
            seed=self.seed,
            epoch=epoch,
        )
        shares = []
        for window in windows:
            steps = window[start:]
            start = max(0, start - len(window))
            if steps:
                shares.append([m for s in steps for m in share(s, rank, world, self.accumulate)])
        return shares

    def tuning_batches(self, rank: int, world: int) -> Iterator[Batch]:
        """Yield this rank's part of the tuning split, every patient once over all ranks.

        With fewer patients than ranks every rank reads all of them, which leaves means unchanged.
        """
        order = np.argsort(self.tuning.lengths, kind="stable")
        order = order[rank::world] if len(order) >= world else order
        size = max(1, (self.config.eval_batch_size or self.config.batch_size) // world)
        parts = [order[i : i + size] for i in range(0, len(order), size)]
        yield from made_ahead(self.collate, self.tuning.read(self._windows(parts)), self.threads)

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
        yield from made_ahead(self.collate, self.tuning.read(self._windows(parts)), self.threads)

    def _windows(self, parts: Sequence[Indices]) -> list[Sequence[Indices]]:
        """Return parts in windows of about `data.shuffle_patients` patients."""
        size = max(1, self.config.shuffle_patients // max(1, len(parts[0]))) if parts else 1
        return [parts[i : i + size] for i in range(0, len(parts), size)]
