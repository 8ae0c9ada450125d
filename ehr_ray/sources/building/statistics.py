"""Statistics of codes, counted where shards are written: two jobs a shard, and what joins them.

codes/<split>-<n>-counts.parquet   COUNTS of a shard
<split>-<n>-seen.parquet     SEEN by a train shard
<split>-<n>-sample.parquet   SAMPLES of it
strides.parquet              STRIDES
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from ehr_ray.events.code_statistics import CodeFit, count_codes, sample_values
from ehr_ray.sources.building.shards import Shard
from ehr_ray.sources.building.staging import Plan
from ehr_ray.storage import files


def _path(plan: Plan, shard: Shard, name: str) -> Path:
    return plan.staging / "codes" / f"{shard.split}-{shard.number}-{name}.parquet"


def _strides(plan: Plan) -> Path:
    return plan.staging / "codes" / "strides.parquet"


def count_shard(plan: Plan, shard: Shard) -> None:
    """Leave the counts and moments of the codes of a shard that is written; kept where there."""
    path = _path(plan, shard, "counts")
    if not path.exists():
        files.write_parquet(count_codes(shard.path(plan)), path)


def train_shards(shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards that statistics are of, in order."""
    return [shard for shard in shards if shard.split == "train"]


def join_counts(plan: Plan, shards: Sequence[Shard]) -> CodeFit:
    """Return the counts and moments of all shards, and leave what their samples are drawn by.

    A shard's are held at a time.
    """
    fit, train = CodeFit(), train_shards(shards)
    for shard in train:
        seen = fit.add(_read(_path(plan, shard, "counts")))
        files.write_parquet(seen, _path(plan, shard, "seen"))
    for shard in shards:
        if shard.split != "train":
            fit.add_names(_read(_path(plan, shard, "counts")))
    files.write_parquet(fit.strides(), _strides(plan))
    return fit


def sample_shard(plan: Plan, shard: Shard) -> None:
    """Leave the values of a train shard that the quantiles are of."""
    seen = _read(_path(plan, shard, "seen"))
    sample = sample_values(shard.path(plan), seen, _read(_strides(plan)))
    files.write_parquet(sample, _path(plan, shard, "sample"))


def samples(plan: Plan, shards: Sequence[Shard]) -> Iterator[pa.Table]:
    """Yield what the jobs of `sample_shard` left."""
    return (_read(_path(plan, shard, "sample")) for shard in train_shards(shards))


def _read(path: Path) -> pa.Table:
    return files.open_parquet(path).read()
