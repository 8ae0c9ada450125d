"""What is checked and resolved of subjects, by ranges of their hash buckets: a job each.

A job holds the subjects of its range, and no process all of them. What a job writes is sorted by
subject; `merged` puts it together, as one file of the cohort.

    ranges/names/<first>.parquet          NAMES of ids that are not their number
           splits/<first>.parquet         SUBJECT_SPLITS
           labels/<task>/<first>.parquet  labels as in the cohort
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.labels import is_among
from ehr_ray.events.schema import SPLITS, SUBJECT_SPLITS
from ehr_ray.sources.building.keyed import read_keys, rows_by_key
from ehr_ray.sources.building.shards import SUBJECTS, Shard
from ehr_ray.sources.building.staging import (
    BY_BUCKET,
    FILES,
    FOLDERS,
    LABELS,
    UNDIVIDED,
    Plan,
    label_schema,
)
from ehr_ray.sources.parsing.identifiers import NAMES, spellings
from ehr_ray.sources.parsing.labels import LeftOut, resolve
from ehr_ray.sources.parsing.split_table import read_mapped
from ehr_ray.sources.splits import assign_buckets
from ehr_ray.storage import files

RANGE_ROWS: Final = 2_000_000
"""Rows of names, of subjects and of labels that a job holds at a time."""
BATCH_ROWS: Final = 1 << 16
"""Rows of each file that a merge holds."""
_NO_SUBJECTS: Final = pa.schema([*SUBJECTS, pa.field("split", pa.string())]).empty_table()


class Buckets(NamedTuple):
    """The subjects whose hash bucket is in [first, last]."""

    first: int
    last: int

    def path(self, plan: Plan, name: str) -> Path:
        """Return the place of the table `name` of these subjects."""
        return plan.staging / "ranges" / name / f"{self.first:06d}.parquet"


def plan_ranges(plan: Plan, num_parts: int) -> list[Buckets]:
    """Divide the buckets into runs of about equal rows, as many as the parts' tables ask for."""
    counts = np.zeros(plan.buckets, np.int64)
    for index in range(num_parts):
        part = plan.part(index)
        for name in BY_BUCKET:
            counts += rows_by_key(part, name, plan.buckets)
        for task, columns in _tasks(part).items():
            for column in columns:
                counts += rows_by_key(part / LABELS / task, column, plan.buckets)
    number = min(max(1, math.ceil(counts.sum() / RANGE_ROWS)), plan.buckets)
    edges = [plan.buckets * i // number for i in range(number + 1)]
    return [Buckets(a, b - 1) for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True)
class Checked:
    """What was found of the ids of a range.

    Args:
        harmless: ids written in several ways that cannot mean two subjects.
        doubtful: ids written in ways that may.
        hashed: ids of several names.
        twice: a subject that came from two files, and these; None where there is none.
        folders: subjects in the folders of two splits.
        folder: the first of them, and these splits.
        undivided: subjects no split was said of, and a hash decided.
    """

    harmless: int = 0
    doubtful: int = 0
    hashed: int = 0
    twice: tuple[int, str, str] | None = None
    folders: int = 0
    folder: tuple[int, str, str] | None = None
    undivided: int = 0


def check_range(plan: Plan, num_parts: int, buckets: Buckets) -> Checked:
    """Return what is found of the ids of a range in all parts; leave their names."""
    parts = [plan.read(plan.part(index)) for index in range(num_parts)]
    names = read_keys(parts, "names", *buckets, NAMES)
    odd = names.filter(pc.not_equal(names["name"], names["subject_id"].cast(pa.string())))
    if len(odd):
        odd = odd.group_by(NAMES.names, use_threads=False).aggregate([])
        order = [(name, "ascending") for name in NAMES.names]
        files.write_parquet(odd.sort_by(order), buckets.path(plan, "names"))
    found = read_keys(parts, "subjects", *buckets, FILES)
    undivided = read_keys(parts, "undivided", *buckets, UNDIVIDED)["subject_id"]
    folders = read_keys(parts, "folders", *buckets, FOLDERS).drop_null()
    pairs = folders.group_by(FOLDERS.names, use_threads=False).aggregate([])
    several = _repeated(pairs)
    return Checked(
        *spellings(names),
        twice=_first(found, _repeated(found)),
        folders=len(several),
        folder=_first(pairs, several),
        undivided=len(pc.unique(undivided)),
    )


def _repeated(rows: pa.Table) -> list[int]:
    """Return the subjects with several rows, ascending."""
    found, number = np.unique(rows["subject_id"].to_numpy(), return_counts=True)
    ids: list[int] = found[number > 1].tolist()
    return ids


def _first(rows: pa.Table, subjects: Sequence[int]) -> tuple[int, str, str] | None:
    """Return the first of the subjects, and what the first two of its rows say of it."""
    if not subjects:
        return None
    said = rows.filter(pc.equal(rows["subject_id"], subjects[0])).column(1).to_pylist()
    return (subjects[0], said[0], said[1])


def check_subjects(found: Sequence[Checked]) -> None:
    """Raise `InputError` where one id came from two files, or may be two subjects'."""
    if twice := [each.twice for each in found if each.twice is not None]:
        _, first, second = min(twice)
        raise InputError(f"one subject is in {first} and in {second}: remove one of them")
    if hashed := sum(each.hashed for each in found):
        raise InputError(
            f"{hashed} times two names of subjects hash to one id; give them numbers instead"
        )
    if doubtful := sum(each.doubtful for each in found):
        raise InputError(
            f"{doubtful} subject ids are written in ways that may be two subjects, as 007 and 7 "
            "or +7 and 7: write each in one way"
        )


def check_folders(found: Sequence[Checked]) -> None:
    """Raise `InputError` where a subject lies in the folders of two splits.

    A table says which of them is meant, but not which of its events: they may be of two subjects.
    """
    if not (several := sum(each.folders for each in found)):
        return
    _, *splits = min(each.folder for each in found if each.folder is not None)
    first, second = sorted(splits)
    raise InputError(
        f"{several:,} subjects lie in the folders of more than one split, the first of them "
        f"in {first} and in {second}: give each subject one, or divide anew by --splits, which "
        "joins all records of an id as one patient's"
    )


@dataclass(frozen=True)
class Settled:
    """What the cohort has of the subjects of a range.

    Args:
        subjects: by split.
        events: of all of them.
        divided: how many have a row in the table of `--splits`, or a value of `--split-by`.
        twice: how many are in more than one split.
        split_twice: the first of them, and two of its splits.
        labels: task -> what was left out of its labels, and how many rows contradict others.
    """

    subjects: Counter[str] = field(default_factory=Counter)
    events: int = 0
    divided: int = 0
    twice: int = 0
    split_twice: tuple[int, str, str] | None = None
    labels: dict[str, LeftOut] = field(default_factory=dict)


def settle_range(
    plan: Plan,
    num_parts: int,
    shards: Sequence[Shard],
    tasks: Mapping[str, str],
    buckets: Buckets,
) -> Settled:
    """Write the splits and the labels of the subjects of a range, whose shards are written.

    `tasks` are those of all parts, as `tasks_of` finds them.
    """
    subjects = _subjects(plan, shards, buckets)
    splits = subjects.select(["subject_id", "split"]).cast(SUBJECT_SPLITS)
    files.write_parquet(splits, buckets.path(plan, "splits"))
    parts = [plan.read(plan.part(index)) for index in range(num_parts)]
    labels = {}
    for task, column in tasks.items():
        name = f"{LABELS}/{task}/{column}"
        rows = read_keys(parts, name, *buckets, label_schema(column))
        table, labels[task] = resolve(rows, subjects)
        files.write_parquet(table, buckets.path(plan, f"labels/{task}"))
    ids = subjects["subject_id"].to_numpy()
    return Settled(
        Counter(dict(zip(*_counted(subjects["split"]), strict=True))),
        pc.sum(subjects["events"]).as_py() or 0,
        _divided(plan, ids),
        int(np.count_nonzero(ids[1:] == ids[:-1])),
        _first(splits, _repeated(splits)),
        labels,
    )


def _divided(plan: Plan, ids: npt.NDArray[np.int64]) -> int:
    if plan.split_by is None and (plan.policy.file is None or plan.policy.keep_source):
        return 0
    known = read_mapped(plan.splits_table()).subject_id
    return int(np.count_nonzero(is_among(np.unique(ids), known)))


def _counted(column: pa.ChunkedArray) -> tuple[list[str], list[int]]:
    counts = column.value_counts()
    return counts.field("values").to_pylist(), counts.field("counts").to_pylist()


def _subjects(plan: Plan, shards: Sequence[Shard], buckets: Buckets) -> pa.Table:
    """Return the `SUBJECTS` of a range with their `split`, sorted by id."""
    pieces = []
    for shard in of_range(plan, shards, buckets):
        table = files.open_parquet(shard.subjects_path(plan)).read()
        bucket = assign_buckets(table["subject_id"].to_numpy(), plan.buckets)
        table = table.filter(pa.array((bucket >= buckets.first) & (bucket <= buckets.last)))
        pieces.append(table.append_column("split", pa.repeat(shard.split, len(table))))
    return pa.concat_tables([_NO_SUBJECTS, *pieces]).sort_by("subject_id")


def of_range(plan: Plan, shards: Sequence[Shard], buckets: Buckets) -> list[Shard]:
    """Return the shards that have subjects of a range."""
    found = []
    for shard in shards:
        base = SPLITS.index(shard.split) * plan.buckets
        if shard.first - base <= buckets.last and shard.last - base >= buckets.first:
            found.append(shard)
    return found


def check_splits(found: Sequence[Settled]) -> None:
    """Raise `InputError` where a subject is in more than one split."""
    if not (twice := sum(each.twice for each in found)):
        return
    _, one, other = min(each.split_twice for each in found if each.split_twice is not None)
    raise InputError(
        f"{twice} subjects are in more than one split, the first of them in {one} and in "
        f"{other}: give each subject one split, or divide "
        "anew by --splits, which joins all records of an id as one patient's"
    )


def tasks_of(parts: Sequence[Path]) -> dict[str, str]:
    """Return task -> its column of values, in order of task.

    Raises `InputError` where a task has values of several types.
    """
    found: dict[str, set[str]] = {}
    for part in parts:
        for task, columns in _tasks(part).items():
            found.setdefault(task, set()).update(columns)
    for task in sorted(found):
        if len(found[task]) > 1:
            raise InputError(f"labels of task {task} have values of several types: keep one")
    return {task: next(iter(found[task])) for task in sorted(found)}


def _tasks(part: Path) -> dict[str, list[str]]:
    folders = sorted((part / LABELS).glob("*"))
    return {folder.name: [path.stem for path in folder.glob("*.index")] for folder in folders}


def merged(paths: Sequence[Path]) -> Iterator[pa.Table]:
    """Yield the rows of Parquet files by subject, a bounded number at a time.

    Each is sorted by `subject_id`, and no subject is in two; of one subject rows keep their order.
    """
    readers = [files.open_parquet(path).iter_batches(BATCH_ROWS) for path in paths]
    heads: dict[int, pa.Table] = {}

    def advance(number: int) -> None:
        batch = next(readers[number], None)
        if batch is None:
            heads.pop(number, None)
        else:
            heads[number] = pa.Table.from_batches([batch])

    for number in range(len(readers)):
        advance(number)
    while heads:
        # What follows in any file is after the last row of its head.
        last = {number: head["subject_id"][-1].as_py() for number, head in heads.items()}
        limit = min(last.values())
        ready = []
        for number in [*heads]:
            head = heads[number]
            size = int(np.searchsorted(head["subject_id"].to_numpy(), limit, side="right"))
            ready.append(head.slice(0, size))
            heads[number] = head.slice(size)
            if size == len(head):
                advance(number)
        rows = pa.concat_tables(ready)
        order = np.argsort(rows["subject_id"].to_numpy(), kind="stable")
        yield rows.take(pa.array(order))


def written(plan: Plan, ranges: Sequence[Buckets], name: str) -> list[Path]:
    """Return the files that the jobs of ranges left of a table."""
    return [path for each in ranges if (path := each.path(plan, name)).exists()]
