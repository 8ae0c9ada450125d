"""What shards hold, counted where they are written, and what joins it: jobs but for groups' sums.

codes/rows/<split>-<n>.parquet  MANIFEST row of a shard
      ...                       what `SampleFolder` keeps
manifest/<group>.parquet        the rows of a group of shards, as the cohort has them
repeats/joined/<group>.parquet  CHANGES about exact repeats in them
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa

from ehr_ray.events.code_statistics import GROUP_SHARDS, CodeFit
from ehr_ray.events.manifest import counts_of, describe_shard, file_name, write_rows
from ehr_ray.events.sample_folder import SampleFolder
from ehr_ray.sources.building.changes import summed
from ehr_ray.sources.building.shards import Shard
from ehr_ray.sources.building.staging import Plan
from ehr_ray.sources.source import CHANGES
from ehr_ray.storage import files

_CODES: Final = "codes"
JOINED: Final = f"{_CODES}/joined"
"""What the process of the verb reads of the counts of shards, and leaves for their samples."""
FOUND: Final = f"{_CODES}/found"
"""What it reads of the quantiles."""
REPEATS: Final = "repeats/joined"
"""What it reads of exact repeats."""


def _folder(plan: Plan) -> SampleFolder:
    return SampleFolder(plan.staging / _CODES)


def _name(shard: Shard) -> str:
    return f"{shard.split}-{shard.number}"


def row_path(plan: Plan, shard: Shard) -> Path:
    """Return the place of the manifest's row of a shard."""
    return plan.staging / _CODES / "rows" / f"{_name(shard)}.parquet"


def describe(plan: Plan, shard: Shard) -> None:
    """Leave the manifest's row of a shard that is written; kept where there."""
    row = row_path(plan, shard)
    if not row.exists():
        path = shard.path(plan)
        name = path.relative_to(plan.staging / "cohort").as_posix()
        files.write_parquet(describe_shard(path, name, shard.split), row)


def rows(plan: Plan, shards: Sequence[Shard]) -> Iterator[pa.Table]:
    """Yield the manifest's rows of shards, one at a time."""
    return (files.open_parquet(row_path(plan, shard)).read() for shard in shards)


def train_shards(shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards that statistics are of, in order."""
    return [shard for shard in shards if shard.split == "train"]


def groups_of(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Return the shards, those of train first, in the groups that jobs join."""
    return [[*shards[a : a + GROUP_SHARDS]] for a in range(0, len(shards), GROUP_SHARDS)]


def group_path(plan: Plan, group: int) -> Path:
    """Return the file that `join_group` leaves last."""
    return _folder(plan).counted(group)


def join_group(plan: Plan, group: int, shards: Sequence[Shard]) -> None:
    """Join the counts of a group of shards, and write its file of the manifest; kept where there.

    What is there is the same: both are made of the rows of these shards alone.
    """
    if group_path(plan, group).exists():
        return
    train = train_shards(shards)
    other = [shard for shard in shards if shard.split != "train"]
    write_rows(rows(plan, shards), plan.staging / "manifest" / file_name(group))
    repeats = [files.open_parquet(shard.repeats_path(plan)).read() for shard in shards]
    every = summed(pa.concat_tables(repeats), ["code", "change"])
    files.write_parquet(every, plan.staging / REPEATS / file_name(group))
    counted = zip(map(_name, train), map(counts_of, rows(plan, train)), strict=True)
    _folder(plan).count(group, counted, map(counts_of, rows(plan, other)))


def join_counts(plan: Plan, shards: Sequence[Shard]) -> CodeFit:
    """Return the counts and moments of all groups, and leave what their samples are drawn by."""
    return _folder(plan).join(len(groups_of(shards)))


def joined_repeats(plan: Plan, shards: Sequence[Shard]) -> Iterator[pa.Table]:
    """Yield the `CHANGES` about exact repeats of each group."""
    for group in range(len(groups_of(shards))):
        table = files.open_parquet(plan.staging / REPEATS / file_name(group)).read()
        yield table.cast(CHANGES)


def write_manifest(plan: Plan, shards: Sequence[Shard], folder: Path) -> None:
    """Copy what `join_group` wrote of the manifest to its folder in the cohort."""
    folder.mkdir(parents=True, exist_ok=True)
    for group in range(len(groups_of(shards))):
        shutil.copyfile(plan.staging / "manifest" / file_name(group), folder / file_name(group))


def needed(plan: Plan, shard: Shard) -> list[Path]:
    """Return what `sample_shard` reads of a shard of train."""
    return [shard.path(plan), *_folder(plan).needed(_name(shard), _group(shard))]


def sample_path(plan: Plan, shard: Shard) -> Path:
    """Return the file that `sample_shard` leaves."""
    return _folder(plan).sample(_name(shard))


def sample_shard(plan: Plan, shard: Shard) -> None:
    """Leave the values of a shard of train that the quantiles are of; kept where there."""
    if not sample_path(plan, shard).exists():
        _folder(plan).draw(_name(shard), _group(shard), shard.path(plan))


def _group(shard: Shard) -> int:
    """Return the group of a shard of train, which is the split that comes first."""
    return shard.number // GROUP_SHARDS


def quantiles_path(plan: Plan, number: int) -> Path:
    """Return the file that `find_quantiles` leaves."""
    return _folder(plan).quantiles(number)


def find_quantiles(
    plan: Plan, number: int, codes: tuple[str, str], shards: Sequence[Shard]
) -> None:
    """Leave the quantiles of a range of codes, of the samples of all shards of train."""
    _folder(plan).find(number, codes, map(_name, shards))


def found_quantiles(plan: Plan, ranges: int) -> Iterator[pa.Table]:
    """Yield what the jobs of `find_quantiles` left."""
    return _folder(plan).found(ranges)
