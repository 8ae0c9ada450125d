"""What shards hold, counted where they are written: two jobs a shard, and what joins them.

codes/<split>-<n>-row.parquet   MANIFEST row of a shard
      ...                       what `SampleFolder` keeps
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ehr_ray.events.code_statistics import CodeFit, SampleFolder
from ehr_ray.events.manifest import counts_of, describe_shard
from ehr_ray.sources.building.shards import Shard
from ehr_ray.sources.building.staging import Plan
from ehr_ray.storage import files


def _folder(plan: Plan) -> SampleFolder:
    return SampleFolder(plan.staging / "codes")


def _name(shard: Shard) -> str:
    return f"{shard.split}-{shard.number}"


def row_path(plan: Plan, shard: Shard) -> Path:
    """Return the place of the manifest's row of a shard."""
    return plan.staging / "codes" / f"{_name(shard)}-row.parquet"


def describe(plan: Plan, shard: Shard) -> None:
    """Leave the manifest's row of a shard that is written; kept where there."""
    row = row_path(plan, shard)
    if not row.exists():
        path = shard.path(plan)
        name = path.relative_to(plan.staging / "cohort").as_posix()
        files.write_parquet(describe_shard(path, name, shard.split), row)


def needed(plan: Plan, shard: Shard) -> list[Path]:
    """Return what `sample_shard` reads."""
    return [shard.path(plan), *_folder(plan).needed(_name(shard))]


def sample_path(plan: Plan, shard: Shard) -> Path:
    """Return the file that `sample_shard` leaves."""
    return _folder(plan).sample(_name(shard))


def rows(plan: Plan, shards: Sequence[Shard]) -> Iterator[pa.Table]:
    """Yield the manifest's rows of shards, one at a time."""
    return (files.open_parquet(row_path(plan, shard)).read() for shard in shards)


def train_shards(shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards that statistics are of, in order."""
    return [shard for shard in shards if shard.split == "train"]


def join_counts(plan: Plan, shards: Sequence[Shard]) -> CodeFit:
    """Return the counts and moments of all shards, and leave what their samples are drawn by."""
    train = train_shards(shards)
    other = [shard for shard in shards if shard.split != "train"]
    counted = zip(map(_name, train), map(counts_of, rows(plan, train)), strict=True)
    return _folder(plan).join(counted, map(counts_of, rows(plan, other)))


def sample_shard(plan: Plan, shard: Shard) -> None:
    """Leave the values of a train shard that the quantiles are of."""
    _folder(plan).draw(_name(shard), shard.path(plan))


def samples(plan: Plan, shards: Sequence[Shard]) -> Iterator[pa.Table]:
    """Yield what the jobs of `sample_shard` left."""
    return _folder(plan).drawn([_name(shard) for shard in train_shards(shards)])
