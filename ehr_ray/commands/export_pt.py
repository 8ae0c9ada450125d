"""The per-patient `.pt` layout of other pipelines, for those who need it: a vector for each token.

`<output>/<split>/patient_<i>.pt` holds `embeddings` (N, D), float32 or at wish float16, `token_ids`
int64 (N,), ids of the `vocab.csv` beside the splits, and `label`, an int64 scalar; i is the place
in load order, and `subjects.csv` says whose it is. It takes hundreds of times the space of ids and
one table, which is what this package trains from, and what the source `embedded-pt` makes of them.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ehr_ray.commands.phrases import embed_phrases
from ehr_ray.errors import InputError
from ehr_ray.events.labels import (
    check_binary,
    choose_task,
    first_kind,
    task_files,
)
from ehr_ray.events.manifest import Manifest
from ehr_ray.events.patients import Patient, read_patients, splits_of
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.dataset import check_cohort, vocabulary_of
from ehr_ray.runtime.data.manifest import opened
from ehr_ray.runtime.data.task_labels import TaskLabels, task_labels
from ehr_ray.runtime.data.tasks import Say, run_shards
from ehr_ray.runtime.session import session_of
from ehr_ray.runtime.text_embedding import TABLE, TEXTS
from ehr_ray.storage import files, sync


def export_pt(
    experiment: Experiment,
    output: Path,
    *,
    task: str | None = None,
    skip_unlabelled: bool = False,
    half: bool = False,
    verbose: bool = False,
    say: Say = lambda _: None,
) -> int:
    """Write one file a labelled patient of every split, cut at prediction time; return how many.

    Raises InputError where the output is not empty, so that no run is mixed with another, and for
    a patient without a label unless those are to be skipped.
    """
    if output.exists() and any(output.iterdir()):
        raise InputError(
            f"--output {output}: not empty, and two exports would mix; choose another folder"
        )
    if experiment.model.gaps == "merged":  # a file has no place for what is added to a token
        experiment = replace(experiment, model=replace(experiment.model, gaps="own"))
    cohort = sync.fetch_cohort(experiment.data.cohort)
    name = choose_task(cohort, task)
    if name is None:
        raise InputError(
            f"{cohort}: no labels, and an export holds one per patient; ingest it with labels"
        )
    check_binary(name, first_kind(task_files(cohort, name)), "export-pt")
    folder, _ = embed_phrases(experiment, verbose=verbose, say=say)
    on_ray = experiment.cluster.most_workers > 0
    with session_of(experiment.cluster, verbose):
        check_cohort(cohort, experiment.cache, say, on_ray=on_ray)
        vocabulary = vocabulary_of(
            cohort,
            experiment.data.min_code_count,
            origin=experiment.data.origin,
            cache=experiment.cache,
            scaling=experiment.data.scale,
            on_ray=on_ray,
            say=say,
        )
        with opened(cohort, experiment.cache, on_ray=on_ray, say=say) as manifest:
            jobs = list(_jobs(cohort, output, manifest))
        labels = task_labels(cohort, name, experiment.cache, on_ray=on_ray)
        writer = PtWriter(experiment, vocabulary, folder, labels, skip_unlabelled, half=half)
        rows = run_shards(jobs, writer, on_ray=on_ray, say=say, verb="exported shards")
    written = [row for shard in rows for row in shard]
    _write(output / "subjects.csv", ["split", "file", "subject_id"], written)
    phrases = files.read_parquet(folder / TEXTS, ["phrase"])["phrase"].to_pylist()
    _write(output / "vocab.csv", ["token", "str"], [*enumerate(phrases)])
    return len(written)


def _write(path: Path, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    with files.new_file(path) as partial, partial.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


class PtWriter:
    """The function of one shard: a file for each of its labelled patients."""

    def __init__(
        self,
        experiment: Experiment,
        vocabulary: Vocabulary,
        folder: Path,
        labels: TaskLabels,
        skip_unlabelled: bool,
        *,
        half: bool,
    ) -> None:
        self._experiment, self._vocabulary, self._folder = experiment, vocabulary, folder
        self._labels, self._skip, self._half = labels, skip_unlabelled, half

    def __call__(self, job: Mapping[str, Any]) -> list[list[Any]]:
        """Write the patients of `job["shard"]`; return `[split, file, subject_id]` of each."""
        torch.set_num_threads(1)
        table = load_file(self._folder / TABLE)["table"]
        table = table.half() if self._half else table
        family, config = get_family(self._experiment.family), self._experiment.model
        target = Path(job["target"])
        target.mkdir(parents=True, exist_ok=True)
        written = []
        for number, (patient, label) in enumerate(self._labelled(job), start=int(job["first"])):
            ids = torch.from_numpy(family.transform(patient, config, self._vocabulary)["phrase"])
            content = {
                "embeddings": table[ids.long()],
                "token_ids": ids.long(),
                "label": torch.tensor(int(label)),
            }
            name = f"patient_{number}.pt"
            torch.save(content, target / name)
            written.append([target.name, name, patient.subject_id])
        return written

    def _labelled(self, job: Mapping[str, Any]) -> Iterator[tuple[Patient, bool]]:
        shard = Path(job["shard"])
        labels = self._labels.of(shard)
        for number, patient in enumerate(read_patients(shard, self._vocabulary), 1):
            answers = labels.of(patient.subject_id)
            if not answers and not self._skip:
                raise InputError(
                    f"{job['shard']}: subject {number} of the file has no label of {labels.task}; "
                    "label it, or leave such patients out with --skip-unlabelled"
                )
            for time, answer in answers[-1:]:
                yield patient.until(time), answer


def _jobs(cohort: Path, output: Path, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the shards with the number their first patient gets."""
    for split, shards in splits_of(cohort).items():
        first = 0
        for shard, subjects in zip(shards, manifest.column("subjects", split), strict=True):
            yield {"shard": str(shard), "target": str(output / split), "first": first}
            first += subjects
