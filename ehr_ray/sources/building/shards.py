"""Second pass: buckets of whole subjects -> sorted Parquet shards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.events.schema import EVENTS, ORIGIN_CODES, SPLITS, is_birth, is_origin
from ehr_ray.sources.building.keyed import read_keys
from ehr_ray.sources.building.repeats import repeats_of
from ehr_ray.sources.building.staging import STAGED, Plan
from ehr_ray.sources.source import EPOCH, count_codes
from ehr_ray.storage import files

MIN_SHARDS: Final = 8
"""Shards of the largest split where its subjects allow, so that small cohorts read in parallel."""

MAX_SHARDS: Final = 512
ROWS_PER_SHARD: Final = 500_000
MAX_ROWS_PER_SHARD: Final = 8_000_000
"""What a task holds in memory: more shards rather than larger ones beyond it."""

ROW_GROUP_ROWS: Final = 131_072

_NAT: Final = np.datetime64("NaT").view(np.int64)

KEPT: Final = "exact repeat, kept"
DROPPED: Final = "exact repeat, left out"

SUBJECTS: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64()),
        pa.field("events", pa.int64()),
        pa.field("origin", pa.timestamp("us")),
        pa.field("last", pa.timestamp("us")),
    ]
)
"""What later steps need of each subject of a shard; null times where no event is timed."""


@dataclass(frozen=True)
class Shard:
    """One output file: the subjects of `split` whose key is in [first, last]."""

    split: str
    number: int
    first: int
    last: int

    def path(self, plan: Plan) -> Path:
        """Return the shard's place in the cohort being built."""
        return plan.staging / "cohort" / "data" / self.split / f"{self.number}.parquet"

    def subjects_path(self, plan: Plan) -> Path:
        """Return the place of its `SUBJECTS` table."""
        return plan.staging / "subjects" / f"{self.split}-{self.number}.parquet"

    def repeats_path(self, plan: Plan) -> Path:
        """Return the place of its `CHANGES` rows about exact repeats."""
        return plan.staging / "repeats" / f"{self.split}-{self.number}.parquet"


def plan_shards(counts: npt.NDArray[np.int64]) -> list[Shard]:
    """Divide each split into runs of buckets of about equal rows, none of them empty.

    `counts` are rows by key. A shard has at most about 500,000 rows, more only if there would
    be over 512 shards; the largest split has at least 8 where it has the subjects.
    """
    by_split = counts.reshape(len(SPLITS), -1)
    rows = by_split.sum(1)
    size = max(ROWS_PER_SHARD, min(math.ceil(rows.sum() / MAX_SHARDS), MAX_ROWS_PER_SHARD))
    size = max(1, min(size, math.ceil(rows.max() / MIN_SHARDS)))
    shards = []
    for i, split in enumerate(SPLITS):
        used = np.flatnonzero(by_split[i])
        if not len(used):
            continue
        ends = np.cumsum(by_split[i][used])
        middles = ends - by_split[i][used] / 2
        num = math.ceil(rows[i] / size)
        owner = np.minimum(middles * num // rows[i], num - 1)
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        stops = np.r_[starts[1:], len(used)]
        base = i * by_split.shape[1]
        shards += [
            Shard(split, n, base + int(used[a]), base + int(used[b - 1]))
            for n, (a, b) in enumerate(zip(starts, stops, strict=True))
        ]
    return shards


def gather(plan: Plan, shard: Shard, num_parts: int, relative_time: bool) -> None:
    """Write one shard and its `SUBJECTS` table; what is already there is kept.

    Sorted by subject, then time with nulls first; events of one time keep the source's order.
    With `relative_time` every subject gets an `ADMISSION` at `EPOCH` unless it has an admission
    there, of whatever kind.
    """
    path = shard.path(plan)
    if path.exists():
        return
    events = _collect(plan, shard, num_parts, relative_time)
    write_shard(_subjects(events, plan.origin), shard.subjects_path(plan))
    write_shard(events, path)


def _collect(plan: Plan, shard: Shard, num_parts: int, relative_time: bool) -> pa.Table:
    parts = [plan.read(plan.keyed(index)) for index in range(num_parts)]
    events = read_keys(parts, STAGED, shard.first, shard.last, EVENTS)
    if relative_time:
        events = _with_admissions(events)
    # NaT is the smallest int64, so static events come first.
    ids, times = (events[name].to_numpy().view(np.int64) for name in ("subject_id", "time"))
    events = events.combine_chunks().take(pa.array(order_of(ids, times)))
    again = repeats_of(events)  # of which an added admission is none
    kept = KEPT if plan.repeats == "keep" else DROPPED
    counts = count_codes(events["code"].filter(pa.array(again)), kept)
    write_shard(counts, shard.repeats_path(plan))
    return events.filter(pa.array(~again)) if plan.repeats == "drop" and again.any() else events


def order_of(ids: npt.NDArray[np.int64], times: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the rows by id, then time, then as they stand; int64 [N].

    >>> order_of(np.array([7, 5, 7, 7]), np.array([20, 30, 10, 20]))
    array([1, 2, 0, 3])
    """
    if not len(ids):
        return np.zeros(0, np.int64)
    subjects = pa.array(ids).dictionary_encode()
    rank = np.empty(len(subjects.dictionary), np.int64)
    rank[np.argsort(subjects.dictionary.to_numpy())] = np.arange(len(rank))
    null = times == _NAT
    first = int(times.min(where=~null, initial=np.iinfo(np.int64).max))
    last = int(times.max(where=~null, initial=first))
    if last - first < 1 << 62 and not null.all():
        # Most times are of whole seconds or minutes.
        since = np.where(null, 0, times - first)
        step = int(np.gcd.reduce(since)) or 1
        width = (last - first) // step + 2
        if len(rank) * width * len(ids) < 1 << 63:
            # One number a row, its place in it: to sort them is several times faster.
            key = rank[subjects.indices.to_numpy()] * width + np.where(null, 0, since // step + 1)
            return np.sort(key * len(ids) + np.arange(len(ids))) % len(ids)
    return np.lexsort((times, ids))


def write_shard(table: pa.Table, path: Path) -> None:
    """Write a table in row groups that a reader can hold one at a time."""
    files.write_parquet(table, path, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def _with_admissions(events: pa.Table) -> pa.Table:
    """Put an `ADMISSION` at `EPOCH` before the rows of every subject not admitted there."""
    ids = events["subject_id"].to_numpy()
    epoch = np.datetime64(EPOCH, "us")
    at_epoch = events["time"].to_numpy() == epoch
    admitted = np.zeros(len(ids), bool)
    here = np.flatnonzero(at_epoch)
    codes = events["code"].combine_chunks().take(pa.array(here)).dictionary_encode()
    names = codes.dictionary.to_pylist()
    # An added `ADMISSION` beside an `ICU_ADMISSION` would hide what the later ones begin.
    admitted[here] = np.isin(
        codes.indices.to_numpy(), np.flatnonzero([is_origin(n) for n in names])
    )
    subjects = np.sort(pc.unique(events["subject_id"]).to_numpy())
    missing = np.setdiff1d(subjects, ids[admitted])
    rows = pa.table(
        [
            missing,
            np.full(len(missing), epoch),
            pa.array(["ADMISSION"] * len(missing), pa.string()),
            pa.nulls(len(missing), pa.float32()),
        ],
        schema=EVENTS,
    )
    return pa.concat_tables([rows, events])


def _subjects(events: pa.Table, names: Sequence[str] = ORIGIN_CODES) -> pa.Table:
    """Return `SUBJECTS` of sorted events; the origin is as `read_patients` finds it."""
    ids = events["subject_id"].to_numpy()
    times = events["time"].to_numpy()
    starts = _firsts(ids)
    subjects, counts = ids[starts], np.diff(starts, append=len(ids))
    last = times[starts + counts - 1]
    encoded = events["code"].combine_chunks().dictionary_encode()
    codes, indices = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    admission = np.array([is_origin(code, names) for code in codes], bool)[indices]
    birth = np.array([is_birth(code) for code in codes], bool)[indices]
    origin = np.full(len(subjects), np.datetime64("NaT"), "datetime64[us]")
    for rows in (birth, ~birth, admission):  # the later one counts
        found = _first_times(subjects, ids, times, rows & ~np.isnat(times))
        origin = np.where(np.isnat(found), origin, found)
    return pa.table([subjects, counts, pa.array(origin), pa.array(last)], schema=SUBJECTS)


def _first_times(
    subjects: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    times: npt.NDArray[np.datetime64],
    rows: npt.NDArray[np.bool_],
) -> npt.NDArray[np.datetime64]:
    """Return the time of each subject's first row among `rows`, NaT where it has none."""
    ids, times = ids[rows], times[rows]
    first = _firsts(ids)
    result = np.full(len(subjects), np.datetime64("NaT"), "datetime64[us]")
    result[np.searchsorted(subjects, ids[first])] = times[first]
    return result


def _firsts(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where each run of one id begins."""
    return np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]][: len(ids)])
