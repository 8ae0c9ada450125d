"""The labels of a task as jobs of shards read them: divided by shard once, and kept in the cache.

    labels-<digest>/<split>/<shard>.parquet  those of the subjects of a shard of that name, in order
    labels-<digest>/found.json               what is known of all of them; written last

Where nothing can be kept a job of a shard passes over all label files instead.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.label_tasks import Kind
from ehr_ray.events.labels import (
    Labels,
    check_kind,
    first_kind,
    left_out_lines,
    read_label_files,
    task_files,
)
from ehr_ray.runtime.data.manifest import NO_FILES, Shards, mute, opened
from ehr_ray.runtime.data.tasks import run_jobs
from ehr_ray.sources.dataset_check import RANGE_IDS, subjects_of
from ehr_ray.storage import copies, files, in_place, sync
from ehr_ray.storage.paths import absolute, local
from ehr_ray.storage.transfers import AT_ONCE

VERSION: Final = 1
"""Bump when the files say other things: what was kept of older versions is made again."""
LABELS_A_SUBJECT: Final = 4
"""Above which a job has fewer subjects than `RANGE_IDS`, and as many labels as that makes."""
HERE_ROWS: Final = 1 << 18
"""Labels, and 64 times as many events, up to which one process divides them sooner than Ray."""
FOUND: Final = "found.json"
REMEDY: Final = "remove its folder labels-*, and labels are divided again"
COLUMNS: Final[dict[Kind, tuple[str, pa.DataType]]] = {
    "binary": ("boolean_value", pa.bool_()),
    "regression": ("float_value", pa.float64()),
    "classes": ("categorical_value", pa.string()),
}
"""Where the answers of a kind are kept."""


@dataclass(frozen=True)
class LabelCount:
    """Labels of the subjects of a split.

    Args:
        labelled: how many.
        positive: how many of them are; None where they are not binary.
    """

    labelled: int
    positive: int | None


@dataclass(frozen=True)
class TaskLabels:
    """The labels of a task of all subjects with events; it travels, and holds none of them.

    Args:
        task: its name.
        cohort: path or URI of the cohort.
        files: paths or URIs of its label files.
        folder: path or URI of the folder they are divided in; None where nothing could be kept.
        kind: what they are.
        classes: names of the classes, in the order in which their places count.
        unknown: rows left out because they have no answer.
        repeated: rows left out because they say again what another says.
        splits: how many there are of each split.
    """

    task: str
    cohort: str
    files: tuple[str, ...]
    folder: str | None
    kind: Kind
    classes: tuple[str, ...]
    unknown: int
    repeated: int
    splits: Mapping[str, LabelCount]

    def of(self, shard: Path) -> Labels:
        """Return those of the subjects of a shard, which lies under `data/` of the cohort."""
        if self.folder is None:
            paths = [sync.fetch(place) for place in self.files]
            found = read_label_files(self.task, paths, subjects_of(shard))
        else:
            path = sync.fetch(local(self.folder) / _name_in(self.cohort, shard))
            found = read_label_files(self.task, [path], remedy=REMEDY)
        if not len(found.subject_id):
            return found  # no answer says of what kind it is
        return found.trained(self.kind, self.classes)

    def trained(self, kind: Kind, classes: Sequence[str]) -> "TaskLabels":
        """Return them with the classes in the order a model knows them; see `Labels.trained`."""
        check_kind(self.task, (self.kind, self.classes), (kind, classes))
        return replace(self, classes=tuple(classes) if kind == "classes" else ())

    def notes(self) -> Iterator[str]:
        """Yield a line on what was left out, if anything was."""
        yield from left_out_lines(self.task, self.unknown, self.repeated)


def task_labels(
    cohort: Path, task: str, cache: Path, *, on_ray: bool, shards: Shards | None = None
) -> TaskLabels:
    """Return the labels of a task of the subjects of a cohort with events, divided by shard.

    They are kept under `cache` until a file changes, where it can be written to. With `on_ray` many
    are divided by tasks of the session that is open: each passes over the label files once, and
    holds the labels of its shards, of about `RANGE_IDS` subjects. `shards` are those of the cohort,
    where they have been listed. Raises `InputError` as `read_labels` does.
    """
    shards = shards or Shards.of(cohort)
    paths = task_files(cohort, task)
    tables = [path.relative_to(cohort) for path in paths]
    name = f"labels-{shards.digest(*tables)}-{VERSION}"
    folder = Path(cache).absolute() / name
    place: str | None = absolute(folder)
    told = sync.fetch(folder / FOUND, missing_ok=True)
    said = _kept(told) if told.is_file() else None
    if said is None:
        divide = DivideLabels(task, absolute(cohort), tuple(map(absolute, paths)), None)
        try:
            said = _found(shards, cache, replace(divide, folder=place), on_ray)
            with copies.unsent(told):
                files.write_text(told, json.dumps(said))
                sync.push(told)
        except NO_FILES:
            said, place = _found(shards, cache, divide, on_ray), None
    return TaskLabels(
        task,
        absolute(cohort),
        tuple(map(absolute, paths)),
        place,
        said["kind"],
        tuple(said["classes"]),
        said["unknown"],
        said["repeated"],
        {split: LabelCount(*each) for split, each in said["splits"].items()},
    )


def _kept(path: Path) -> dict[str, Any] | None:
    """Return what `FOUND` holds; None where it is damaged, and all is divided anew."""
    with files.reads(path, REMEDY):
        try:
            said = json.loads(path.read_text())
        except ValueError:
            return None
    keys = {"kind", "classes", "unknown", "repeated", "splits"}
    return said if isinstance(said, dict) and keys <= said.keys() else None


def _found(listed: Shards, cache: Path, divide: "DivideLabels", on_ray: bool) -> dict[str, Any]:
    """Divide the labels of a cohort; return what `FOUND` holds."""
    cohort, shards = listed.cohort, listed.splits
    paths = task_files(cohort, divide.task)
    rows = sum(map(_rows, paths))
    with ThreadPoolExecutor(AT_ONCE) as pool:  # of shards that are not here a store is asked
        events = subjects = sum(pool.map(_rows, itertools.chain(*shards.values())))
    if subjects > RANGE_IDS:  # else it matters not how many fewer there are
        with opened(cohort, cache, on_ray=on_ray, shards=listed) as manifest:
            subjects = manifest.total("subjects")
    groups = math.ceil(max(subjects, rows / LABELS_A_SUBJECT, 1) / RANGE_IDS)
    places = [absolute(path) for own in shards.values() for path in own]
    size = math.ceil(len(places) / groups)
    jobs = [places[start : start + size] for start in range(0, len(places), size)]
    on_ray = on_ray and max(rows, events / 64) > HERE_ROWS
    made = run_jobs(divide, jobs, on_ray=on_ray, say=mute, verb="divided labels", label=_first_of)
    # Of a job without labels nobody knows of what kind they are.
    told = [each for each in made if any(each.labelled)]
    if len({each.column for each in told}) > 1:
        read_label_files(divide.task, paths)  # refuses them, and says where they are
    kind = told[0].kind if told else first_kind(paths)
    labelled = [number for each in made for number in each.labelled]
    positive = [number for each in made for number in each.positive]
    splits, first = {}, 0
    for split, own in shards.items():
        part = slice(first, first := first + len(own))
        splits[split] = [sum(labelled[part]), sum(positive[part]) if kind == "binary" else None]
    return {
        "kind": kind,
        "classes": sorted({name for each in told for name in each.classes}),
        "unknown": sum(each.unknown for each in made),
        "repeated": sum(each.repeated for each in made),
        "splits": splits,
    }


def _rows(path: Path) -> int:
    with files.reads(path, "restore it"), in_place.parquet(path) as file:
        return int(file.metadata.num_rows)


def _first_of(job: Sequence[str]) -> str:
    return job[0]


class Divided(NamedTuple):
    """What a job finds: labels and positive ones of each shard, their kind, rows left out."""

    labelled: list[int]
    positive: list[int]
    unknown: int
    repeated: int
    column: str
    kind: Kind
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DivideLabels:
    """The job of some shards, as their places.

    Args:
        task: its name.
        cohort: path or URI of the cohort.
        files: paths or URIs of the label files.
        folder: path or URI of the folder that gets a file of each shard; None: they are counted.
    """

    task: str
    cohort: str
    files: tuple[str, ...]
    folder: str | None

    def __call__(self, job: Sequence[str]) -> Divided:
        """Write the labels of each shard, and tell of all of them."""
        shards = [local(place) for place in job]
        ids, shard = _subjects_of(job)
        labels = read_label_files(self.task, [sync.fetch(place) for place in self.files], ids)
        of = shard[np.searchsorted(ids, labels.subject_id)]
        count = np.bincount(of, minlength=len(shards))
        yes = labels.value if labels.kind == "binary" else np.zeros(len(of), bool)
        if self.folder is not None:
            order, ends = np.argsort(of, kind="stable"), np.cumsum(np.append(0, count))
            parts = (order[start:end] for start, end in itertools.pairwise(ends))
            with ThreadPoolExecutor(AT_ONCE) as pool:  # a disk or a store is waited for
                list(pool.map(lambda path, rows: self._write(path, labels, rows), shards, parts))
        return Divided(
            labelled=count.tolist(),
            positive=np.bincount(of[yes], minlength=len(shards)).tolist(),
            unknown=labels.unknown,
            repeated=labels.repeated,
            column=labels.column,
            kind=labels.kind,
            classes=labels.classes,
        )

    def _write(self, shard: Path, labels: Labels, rows: npt.NDArray[np.int64]) -> None:
        name, kind = COLUMNS[labels.kind]
        value = pa.array(labels.value[rows])
        if labels.kind == "classes":
            value = pa.array(labels.classes, kind).take(value)
        table = {
            "subject_id": pa.array(labels.subject_id[rows]),
            "prediction_time": pa.array(labels.prediction_time[rows]).cast(pa.timestamp("us")),
            name: value.cast(kind),
        }
        assert self.folder is not None
        target = local(self.folder) / _name_in(self.cohort, shard)
        with copies.unsent(target):
            files.write_parquet(pa.table(table), target)
            sync.push(target)


def _subjects_of(shards: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return all subjects of some shards, ascending, and the number of the shard of each."""
    parts = [subjects_of(place) for place in shards]
    shard = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part) for part in parts])
    ids = np.concatenate(parts)
    order = np.argsort(ids, kind="stable")
    return ids[order], shard[order]


def _name_in(cohort: str, shard: Path) -> Path:
    """Return the path of a shard of a cohort below its folder `data`."""
    return shard.absolute().relative_to(local(cohort).absolute() / "data")
