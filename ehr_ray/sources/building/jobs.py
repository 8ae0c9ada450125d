"""The jobs of an ingest, in the order they run: each works where `at_work` lets it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

from ehr_ray.sources.building.groups import divide_part
from ehr_ray.sources.building.ranges import (
    Buckets,
    Checked,
    Settled,
    check_range,
    of_range,
    settle_range,
)
from ehr_ray.sources.building.shards import Shard, gather
from ehr_ray.sources.building.sharing import at_work, of_this_machine
from ehr_ray.sources.building.staging import Plan, scatter
from ehr_ray.sources.building.statistics import (
    describe,
    find_quantiles,
    group_path,
    join_group,
    needed,
    quantiles_path,
    row_path,
    sample_path,
    sample_shard,
)
from ehr_ray.sources.building.unpacking import ranges_path, unpack_unit
from ehr_ray.sources.source import Unit


@dataclass(frozen=True)
class Job:
    """What the jobs of an ingest have in common.

    Args:
        plan: what every one of them needs to know.
        output: where the cohort is to be, as every machine names it.
    """

    plan: Plan
    output: str


@dataclass(frozen=True)
class UnpackUnit(Job):
    """The job of a unit of a large compressed file, given with its number: pieces of its text.

    Where nothing is `cut` it stays whole: one process reads it faster as it is.
    """

    cut: bool

    def __call__(self, job: tuple[int, Unit]) -> None:
        """Unpack the file, which is copied here first if it lies in a store."""
        number, unit = job
        with at_work(self.plan, self.output, last=ranges_path(self.plan, number)) as plan:
            if plan is not None:
                unpack_unit(plan, number, of_this_machine(unit) if self.cut else None)


@dataclass(frozen=True)
class ReadUnit(Job):
    """The job of a unit of the source, given with its number: its part of the staging folder."""

    def __call__(self, job: tuple[int, Unit]) -> None:
        """Read the unit, whose files are copied here first if they lie in a store."""
        number, unit = job
        part = self.plan.part(number)
        needs = [self.plan.staging / unit.piece] if unit.piece else []
        with at_work(self.plan, self.output, part=part, needs=needs) as plan:
            if plan is not None:
                here = of_this_machine(unit)
                piece = str(plan.staging / unit.piece) if unit.piece else ""
                scatter(plan, number, replace(here, piece=piece))


@dataclass(frozen=True)
class DividePart(Job):
    """The job of a part, given by its number: its events by the splits of their groups."""

    def __call__(self, number: int) -> None:
        """Write the part anew."""
        with at_work(self.plan, self.output, part=self.plan.keyed(number)) as plan:
            if plan is not None:
                divide_part(plan, number)


@dataclass(frozen=True)
class WriteShard(Job):
    """The job of a shard: its patients' events out of all parts, and its row of the manifest."""

    parts: int
    relative_time: bool

    def __call__(self, shard: Shard) -> None:
        """Write the shard."""
        with at_work(self.plan, self.output, last=row_path(self.plan, shard)) as plan:
            if plan is not None:
                gather(plan, shard, self.parts, self.relative_time)
                describe(plan, shard)


@dataclass(frozen=True)
class JoinGroup(Job):
    """The job of a group of shards, given with its number: their counts, and their manifest."""

    def __call__(self, job: tuple[int, list[Shard]]) -> None:
        """Join them."""
        group, shards = job
        last = group_path(self.plan, group)
        needs = [row_path(self.plan, shard) for shard in shards]
        needs += [shard.repeats_path(self.plan) for shard in shards]
        with at_work(self.plan, self.output, last=last, needs=needs) as plan:
            if plan is not None:
                join_group(plan, group, shards)


@dataclass(frozen=True)
class SampleShard(Job):
    """The job of a shard of train: the values that quantiles of its codes are of."""

    def __call__(self, shard: Shard) -> None:
        """Draw them."""
        last, needs = sample_path(self.plan, shard), needed(self.plan, shard)
        with at_work(self.plan, self.output, last=last, needs=needs) as plan:
            if plan is not None:
                sample_shard(plan, shard)


@dataclass(frozen=True)
class FindQuantiles(Job):
    """The job of a range of codes, given with its number: their quantiles over shards of train."""

    shards: list[Shard]

    def __call__(self, job: tuple[int, tuple[str, str]]) -> None:
        """Find them."""
        number, codes = job
        last = quantiles_path(self.plan, number)
        needs = [sample_path(self.plan, shard) for shard in self.shards]
        with at_work(self.plan, self.output, last=last, needs=needs) as plan:
            if plan is not None:
                find_quantiles(plan, number, codes, self.shards)


@dataclass(frozen=True)
class CheckRange(Job):
    """The job of a range of buckets: what is found of its subjects' ids in all parts."""

    parts: int

    def __call__(self, buckets: Buckets) -> Checked:
        """Check the range."""
        with at_work(self.plan, self.output) as plan:
            return check_range(cast(Plan, plan), self.parts, buckets)


@dataclass(frozen=True)
class SettleRange(Job):
    """The job of a range of buckets: the splits and labels of its subjects."""

    parts: int
    shards: list[Shard]
    tasks: Mapping[str, str]

    def __call__(self, buckets: Buckets) -> Settled:
        """Settle the range."""
        needs = [
            shard.subjects_path(self.plan) for shard in of_range(self.plan, self.shards, buckets)
        ]
        with at_work(self.plan, self.output, needs=needs) as plan:
            return settle_range(cast(Plan, plan), self.parts, self.shards, self.tasks, buckets)
