"""Cohort shards to model-ready rows on Ray Data: the transform of a family, once per patient.

One item is one shard: the function that reads it packs its patients, carries their values forward
and writes the rows, so no batching can cut a patient in two and nothing of size travels. Every
rank maps the same files into memory and draws its batches from them.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.blocks import BlockStore, write_block
from ehr_ray.events.labels import Labels, choose_task, label_files, read_label_files
from ehr_ray.events.mixing import FIRST, GOLDEN
from ehr_ray.events.patients import Patient, read_patients, shard_names, splits_of
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.registry import get_schema
from ehr_ray.runtime.data.dataset import check_cohort, vocabulary_of
from ehr_ray.runtime.data.tasks import Say, run_shards
from ehr_ray.storage import sync
from ehr_ray.storage.paths import absolute, canonical

LAYOUT = 3
"""Bump when the same events would give other rows: rows of older versions are not reused."""

if TYPE_CHECKING:  # `expand`, which needs no torch, reads the codes by this module
    from ehr_ray.family import AnyFamily, Row


@dataclass(frozen=True)
class Prepared:
    """A family's model-ready dataset: block files by split, and the vocabulary they speak."""

    vocabulary: Vocabulary
    blocks: Mapping[str, tuple[Path, ...]]

    def store(self, split: str) -> BlockStore:
        """Return the rows of a split, mapped into memory."""
        return BlockStore(self.blocks.get(split, ()))


@contextlib.contextmanager
def prepared(
    experiment: Experiment, family: "AnyFamily", *, on_ray: bool, say: Say = lambda _: None
) -> Iterator[Prepared]:
    """Yield the model-ready dataset of an experiment, making what the cache does not hold."""
    cohort = sync.fetch(experiment.data.cohort)
    if not cohort.is_dir():
        raise InputError(
            f"data.cohort={cohort}: no such folder; make it with `ehr-ray ingest`, "
            "or give another as data.cohort=PATH"
        )
    shards = splits_of(cohort)
    if not shards.get("train"):
        raise InputError(f"{cohort}: no train split; training needs data/train/*.parquet")
    data = experiment.data
    kept = None if data.cache == "memory" else experiment.cache
    check_cohort(cohort, kept, say)
    vocabulary = vocabulary_of(
        cohort, data.min_code_count, origin=data.origin, cache=kept, scaling=data.scale
    )
    if not len(vocabulary):
        raise InputError(
            f"{cohort}: no code is seen {experiment.data.min_code_count} times in train; "
            "lower data.min_code_count"
        )
    check_codes(experiment, vocabulary)
    shards = {split: shards.get(split, []) for split in ("train", "tuning")}
    labels: list[Path] = []
    if experiment.task is not None:
        labels = label_files(cohort)[str(choose_task(cohort, experiment.task.name))]
        for line in read_label_files(experiment.task.name, labels).notes():
            say(line)
    with _folder(experiment, family, vocabulary, shards) as folder:
        sync.fetch(folder, missing_ok=True)
        blocks = {
            split: tuple(folder / split / f"{n}.arrow" for n in shard_names(cohort, split, paths))
            for split, paths in shards.items()
        }
        jobs = [
            {"shard": str(path), "target": str(target), "split": split}
            for split, paths in shards.items()
            for path, target in zip(paths, blocks[split], strict=True)
            if not target.is_file()
        ]
        if jobs:
            make = BlockMaker(experiment, vocabulary, labels)
            run_shards(jobs, make, on_ray=on_ray, say=say, verb="prepared shards")
        yield Prepared(vocabulary, blocks)


def check_codes(experiment: Experiment, vocabulary: Vocabulary) -> None:
    """Raise ConfigError for a code that the config lists by name and train has none of."""
    for name in get_schema(experiment.family).codes:
        codes = getattr(experiment.model, name)
        for code in (c for c, i in zip(codes, vocabulary.encode(codes), strict=True) if i < 0):
            close = difflib.get_close_matches(code, vocabulary.codes, 1)
            hint = f"did you mean {close[0]}?" if close else "drop it, or lower data.min_code_count"
            raise ConfigError(
                f"model.{name}: {code!r} is no code of {experiment.data.cohort}; {hint}"
            )


class BlockMaker:
    """The function of one shard: read, pack, transform, write the block.

    With a task each of its labels makes a row, of what was known at the prediction time, and in
    train another at each of `task.hours`; patients without a label make none.
    """

    def __init__(
        self, experiment: Experiment, vocabulary: Vocabulary, labels: Sequence[Path] = ()
    ) -> None:
        self._experiment, self._vocabulary = experiment, vocabulary
        self._labels = [canonical(path) for path in labels]

    def __call__(self, job: Mapping[str, str]) -> None:
        """Make `job["target"]` from `job["shard"]`; the labels are read here, not sent along."""
        task = self._experiment.task
        labels = None
        if task is not None:
            labels = read_label_files(task.name, [sync.fetch(place) for place in self._labels])
        patients = read_patients(Path(job["shard"]), self._vocabulary)
        write_block(Path(job["target"]), self._rows(patients, job["split"], labels))

    def _rows(
        self, patients: Iterator[Patient], split: str, labels: Labels | None
    ) -> Iterator["Row"]:
        from ehr_ray.train.task import family_of

        transform = family_of(self._experiment).transform
        config, task = self._experiment.model, self._experiment.task
        for patient in patients:
            if task is None or labels is None:
                yield transform(patient, config, self._vocabulary)
                continue
            if split == "train" and not sampled(patient.subject_id, task.label_ratio):
                continue
            for time, answer in labels.of(patient.subject_id):
                for cut in _cuts(patient.origin, time, task.hours if split == "train" else ()):
                    row = transform(patient.until(cut), config, self._vocabulary)
                    yield {**row, "label": np.array(answer, np.float32)}


def _cuts(origin: int, time: int, hours: Sequence[float]) -> list[int]:
    """Return the times a patient is seen at, in microseconds: the label's own and those before."""
    early = (origin + int(hour * 3.6e9) for hour in hours)
    return [*(cut for cut in early if cut < time), time]


def sampled(subject_id: int, share: float) -> bool:
    """Whether a subject is among the given share: by a hash of its id, so the same every time.

    Half of splitmix64, with another start: it stays, or runs would get other subjects.
    """
    mixed = (subject_id * GOLDEN + 0x632BE59BD9B4E019) % (1 << 64)
    mixed = ((mixed ^ (mixed >> 30)) * FIRST) % (1 << 64)
    return (mixed >> 11) / (1 << 53) < share


@contextlib.contextmanager
def _folder(
    experiment: Experiment,
    family: "AnyFamily",
    vocabulary: Vocabulary,
    shards: Mapping[str, Sequence[Path]],
) -> Iterator[Path]:
    if experiment.data.cache == "memory":
        shared = Path("/dev/shm")
        root = tempfile.mkdtemp(prefix="ehr_ray-", dir=shared if shared.is_dir() else None)
        try:
            yield Path(root)
        finally:
            shutil.rmtree(root, ignore_errors=True)
        return
    key = _key(experiment, family, vocabulary, shards)
    yield experiment.cache.absolute() / f"{family.name}-{key}"


def _key(
    experiment: Experiment,
    family: "AnyFamily",
    vocabulary: Vocabulary,
    shards: Mapping[str, Sequence[Path]],
) -> str:
    manifest = [
        (absolute(p), p.stat().st_size, p.stat().st_mtime_ns)
        for paths in shards.values()
        for p in paths
    ]
    options = {name: getattr(experiment.model, name) for name in family.cache_fields}
    if (task := experiment.task) is not None:
        files = [path.stat() for path in label_files(experiment.cohort)[task.name]]
        stamps = [(file.st_size, file.st_mtime_ns) for file in files]
        options["task"] = [task.name, task.hours, task.label_ratio, stamps]
        if (read := task.statistics) is not None:
            options["statistics"] = [read.windows, read.max_codes]
    parts = [manifest, options, family.version, LAYOUT, vocabulary.origin]
    digest = hashlib.sha256(json.dumps(parts, default=dataclasses.asdict).encode())
    digest.update("\0".join(vocabulary.codes).encode())
    digest.update(vocabulary.location.tobytes() + vocabulary.scale.tobytes())
    digest.update(vocabulary.quantiles.tobytes())
    return digest.hexdigest()[:20]
