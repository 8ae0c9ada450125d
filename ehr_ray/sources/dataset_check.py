"""A MEDS dataset of others, used as it stands: what ingest would check is checked here."""

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.manifest import is_contradicted
from ehr_ray.events.schema import RECORD, SPLITS, is_zoned
from ehr_ray.sources.building.keyed import KeyedWriter, read_keys
from ehr_ray.sources.parsing.split_table import check_once, once_each, read_split_batches
from ehr_ray.sources.splits import NUM_BUCKETS, assign_buckets
from ehr_ray.storage import files, in_place, sync
from ehr_ray.storage.paths import absolute, local

SPLITS_FILE: Final = Path("metadata") / "subject_splits.parquet"
RANGE_IDS: Final = 2_000_000
"""Subjects that a job compares."""
Run = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]
REMEDY: Final = "run `ehr-ray ingest --source meds`"
TABLE: Final = "rows"
SAID: Final = "said"
"""Folder of the table of splits by bucket; those of shards have their number."""
IDS: Final = pa.schema([pa.field("subject_id", pa.int64())])
SAID_SPLITS: Final = pa.schema([*IDS, pa.field("split", pa.int8())])


def here(function: Callable[[Any], Any], jobs: Sequence[Any]) -> list[Any]:
    """Return what a function gives of each job, called in this process."""
    return [function(job) for job in jobs]


def is_ours(cohort: Path, shards: Mapping[str, Sequence[Path]]) -> bool:
    """Whether `ingest` wrote all of these shards, which it has checked, and wrote them as they are.

    They are known by name, and by the footers that the cohort's manifest has.
    """
    texts = {split: [*map(str, paths)] for split, paths in shards.items()}
    return is_named(cohort, texts) and not is_contradicted(cohort, shards)


def is_named(cohort: Path, shards: Mapping[str, Sequence[str]]) -> bool:
    """Whether `ingest` has noted that it wrote shards of all of these names."""
    record = Path(cohort) / RECORD
    if not record.is_file():
        return False
    with files.reads(record, "restore it, or ingest the cohort again"):
        written = json.loads(record.read_text()).get("shards", {})
    names = {split: {*map(os.path.basename, paths)} for split, paths in shards.items()}
    return all(own <= {*written.get(split, ())} for split, own in names.items())


def check_dataset(
    cohort: Path, shards: Mapping[str, Sequence[Path]], folder: Path, run: Run = here
) -> list[str]:
    """Check who is where, by the ids alone; return lines on what a person should know.

    Raises `InputError` for a subject in two shards or in two splits, for times with and without a
    zone, and where `metadata/subject_splits.parquet` puts subjects elsewhere than the folder they
    lie in. No process holds more ids than those of a shard, or `RANGE_IDS` of all.

    Args:
        cohort: folder of the dataset.
        shards: its shards by split.
        folder: an empty one, for the ids by ranges; a URI has it as its copy here.
        run: calls a picklable function on each of some jobs, wherever it likes.
    """
    paths = [(split, path) for split, found in shards.items() for path in found]
    place, table = absolute(folder), Path(cohort) / SPLITS_FILE
    jobs = [(number, absolute(path)) for number, (_, path) in enumerate(paths)]
    left = run(LeaveIds(place), jobs)
    number = sum(count for count, _ in left)
    zoned = {zone: path for (_, zone), (_, path) in zip(left, paths, strict=True)}
    if len(zoned) > 1:
        raise InputError(
            f"{zoned[True]}: times with a zone, but none in {zoned[False]}; give all shards times "
            "with one, or none (the local clock)"
        )
    said = table.is_file()
    if said:
        run(LeaveSplits(place), [absolute(table)])
    count = min(max(1, math.ceil(number / RANGE_IDS)), NUM_BUCKETS)
    edges = [NUM_BUCKETS * i // count for i in range(count + 1)]
    splits = [SPLITS.index(split) for split, _ in paths]
    ranges = [(a, b - 1) for a, b in itertools.pairwise(edges)]
    found: list[FoundIds] = run(CheckIds(place, splits), ranges)
    if twice := [each.first for each in found if each.first is not None]:
        _, *pair = min(twice)
        one, other = (paths[shard][1].relative_to(cohort) for shard in pair)
        raise InputError(
            f"{cohort}: {sum(each.twice for each in found):,} subjects are in more than one shard, "
            f"the first of them in {one} and in {other}; {REMEDY}, which joins what is one "
            "subject's"
        )
    check_once(table, sum(each.split_twice for each in found))
    if moved := sum(each.moved for each in found):
        raise InputError(
            f"{table}: {moved:,} subjects have another split there than the folder under data/ "
            f"that they lie in; {REMEDY}, which follows the table"
        )
    unsaid = sum(each.unsaid for each in found) if said else 0
    if not unsaid:
        return []
    return [
        f"{unsaid:,} of {number:,} subjects have no row in {table}: the folder they lie in decides"
    ]


@dataclass(frozen=True)
class FoundIds:
    """What is found of the subjects of a range.

    Args:
        twice: how often one is in another shard too.
        first: the first of them, and the numbers of two of its shards.
        split_twice: how often one has another split in the table too.
        moved: how many the table puts elsewhere than the folder.
        unsaid: how many have no row in it.
    """

    twice: int
    first: tuple[int, int, int] | None
    split_twice: int
    moved: int
    unsaid: int


@dataclass(frozen=True)
class LeaveIds:
    """The job of a shard, as its number and its place: its subjects by bucket, in a folder."""

    folder: str

    def __call__(self, job: tuple[int, str]) -> tuple[int, bool]:
        """Return how many subjects it has, and whether its times say their zone."""
        number, place = job
        path = sync.in_store(place)
        ids = subjects_of(path)
        with _keyed(self.folder, str(number), IDS) as writer:
            writer.write(pa.table([ids], schema=IDS), assign_buckets(ids))
        with files.reads(path, REMEDY), in_place.parquet(path) as file:
            schema = file.schema_arrow
        return len(ids), "time" in schema.names and is_zoned(schema.field("time").type)


@dataclass(frozen=True)
class LeaveSplits:
    """The job of the table of splits, as its place: its rows by bucket, in a folder."""

    folder: str

    def __call__(self, place: str) -> None:
        """Read it, some rows at a time."""
        with _keyed(self.folder, SAID, SAID_SPLITS) as writer:
            for ids, split in read_split_batches(sync.fetch(place)):
                writer.write(pa.table([ids, split], schema=SAID_SPLITS), assign_buckets(ids))


@contextlib.contextmanager
def _keyed(folder: str, name: str, schema: pa.Schema) -> Iterator[KeyedWriter]:
    target = local(folder) / name
    with files.writes(target.parent):
        target.mkdir(parents=True, exist_ok=True)
        with KeyedWriter(target, TABLE, schema, NUM_BUCKETS) as writer:
            yield writer
    sync.push(target)


@dataclass(frozen=True)
class CheckIds:
    """The job of a range of buckets, as its first and its last; `splits` are those of shards."""

    folder: str
    splits: Sequence[int]

    def __call__(self, buckets: tuple[int, int]) -> FoundIds:
        """Return what is found of the subjects of the range."""
        folder = sync.fetch(self.folder)
        pieces = [
            read_keys([folder / str(number)], TABLE, *buckets, IDS)["subject_id"].to_numpy()
            for number in range(len(self.splits))
        ]
        ids = np.concatenate(pieces)
        shard = np.repeat(np.arange(len(pieces)), [len(piece) for piece in pieces])
        order = np.argsort(ids, kind="stable")
        ids, shard = ids[order], shard[order]
        twice = np.flatnonzero(ids[1:] == ids[:-1])
        first = None
        if len(twice):
            one = int(twice[0])
            first = (int(ids[one]), int(shard[one]), int(shard[one + 1]))
        rows = read_keys([folder / SAID], TABLE, *buckets, SAID_SPLITS)
        known, said, split_twice = once_each(*(column.to_numpy() for column in rows.columns))
        at = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
        there = known[at] == ids if len(known) else np.zeros(len(ids), bool)
        own = np.array(self.splits, np.int8)[shard[there]]
        moved = int(np.count_nonzero(said[at[there]] != own))
        return FoundIds(len(twice), first, split_twice, moved, int(np.count_nonzero(~there)))


def subjects_of(path: str | Path) -> npt.NDArray[np.int64]:
    """Return the subjects of a shard, each once, ascending; int64 [subjects].

    A shard given by its URI is not copied: its ids alone are read.
    """
    found = [np.zeros(0, np.int64)]
    with files.reads(path, REMEDY), in_place.parquet(path) as file:
        if "subject_id" not in file.schema_arrow.names:
            raise InputError(f"{path}: no column subject_id; a MEDS shard has one")
        for batch in file.iter_batches(1 << 20, columns=["subject_id"]):
            column = batch["subject_id"]
            if column.null_count or not pa.types.is_integer(column.type):
                raise InputError(f"{path}: subject_id must be integers without gaps; {REMEDY}")
            # A subject's events follow each other: of each run one is enough to look at.
            found.append(_runs(column.cast(pa.int64()).to_numpy()))
    ids = _runs(np.concatenate(found))
    if (ids[1:] < ids[:-1]).any():
        ids = _runs(np.sort(ids))
    return ids


def _runs(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return ids, of equal ones that follow each other the first."""
    return ids[np.append(True, ids[1:] != ids[:-1])[: len(ids)]]
