"""How many labels of a task each split of a cohort has, counted by jobs of shards and kept."""

import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ehr_ray.errors import ResourcesUnavailableError
from ehr_ray.events.answers import Kind
from ehr_ray.events.labels import read_label_files, task_files
from ehr_ray.events.patients import splits_of
from ehr_ray.runtime.data.manifest import mute, shards_digest
from ehr_ray.runtime.data.tasks import run_jobs
from ehr_ray.sources.dataset_check import RANGE_IDS, subjects_of
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import absolute


@dataclass(frozen=True)
class LabelCount:
    """Labels of the subjects of a split.

    Args:
        labelled: how many.
        positive: how many of them are; None where they are not binary.
    """

    labelled: int
    positive: int | None


def count_labels(
    cohort: Path, task: str, cache: Path, patients: int, *, on_ray: bool
) -> dict[str, LabelCount]:
    """Return the labels of each split, of subjects with events.

    They are kept under `cache` until a file changes, where it can be written to. With `on_ray` they
    are counted by tasks of the session that is open: each passes over the label files once, and
    holds the labels of its shards, of about `RANGE_IDS` of the cohort's `patients`.
    """
    shards, paths = splits_of(cohort), task_files(cohort, task)
    tables = [path.relative_to(cohort) for path in paths]
    kept = Path(cache).absolute() / f"labelled-{shards_digest(cohort, *tables)}.json"
    if kept.is_file():
        with files.reads(kept, "remove it, and it is counted again"):
            return {
                split: LabelCount(*each) for split, each in json.loads(kept.read_text()).items()
            }
    size = math.ceil(sum(map(len, shards.values())) / math.ceil(max(patients, 1) / RANGE_IDS))
    jobs = [
        (split, [absolute(path) for path in own[start : start + size]])
        for split, own in shards.items()
        for start in range(0, len(own), size)
    ]
    count = CountLabels(task, tuple(map(absolute, paths)))
    counted = run_jobs(count, jobs, on_ray=on_ray, say=mute, verb="counted labels", label=_first_of)
    # Of a job without labels nobody knows of what kind they are.
    binary = {kind for number, _, kind in counted if number} <= {"binary"}
    found = {}
    for split in shards:
        own = [each for (name, _), each in zip(jobs, counted, strict=True) if name == split]
        positive = sum(positive for _, positive, _ in own) if binary else None
        found[split] = LabelCount(sum(number for number, _, _ in own), positive)
    with contextlib.suppress(ResourcesUnavailableError), files.writes(kept.parent):
        kept.parent.mkdir(parents=True, exist_ok=True)
        counts = {split: [each.labelled, each.positive] for split, each in found.items()}
        files.write_text(kept, json.dumps(counts))
    return found


def _first_of(job: tuple[str, Sequence[str]]) -> str:
    return job[1][0]


@dataclass(frozen=True)
class CountLabels:
    """The job of some shards, as their split and their places; `files` are those of the labels."""

    task: str
    files: tuple[str, ...]

    def __call__(self, job: tuple[str, Sequence[str]]) -> tuple[int, int, Kind]:
        """Return (labels of their subjects, positive ones where they are binary, their kind)."""
        ids = np.sort(np.concatenate([subjects_of(sync.fetch(place)) for place in job[1]]))
        labels = read_label_files(self.task, [sync.fetch(place) for place in self.files], ids)
        positive = int(labels.value.sum()) if labels.kind == "binary" else 0
        return len(labels.subject_id), positive, labels.kind
