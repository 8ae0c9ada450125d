"""A shard's patients to a family's model-ready rows: what is read, and what each patient gives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ehr_ray.events.carry import PatientSets
from ehr_ray.events.labels import Labels
from ehr_ray.events.mixing import FIRST, GOLDEN
from ehr_ray.events.patients import Patient, read_patients
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.task_labels import TaskLabels
from ehr_ray.sources.expanded import read_sets

if TYPE_CHECKING:  # `expand`, which needs no torch, reads the codes by this package
    from ehr_ray.family import Row

Cut = tuple[int, float]
"""A time a patient is seen at, in microseconds since 1970, and the label then: of classes its place
among those of the task."""


class RowMaker:
    """Makes the rows of an experiment.

    With a task each of its labels makes a row, of what was known at the prediction time, and in
    train another at each of `task.hours`; patients without a label make none. Labels are read where
    rows are made, not sent along.
    """

    def __init__(
        self, experiment: Experiment, vocabulary: Vocabulary, labels: TaskLabels | None = None
    ) -> None:
        self._experiment, self._vocabulary, self._labels = experiment, vocabulary, labels

    def patients(
        self, job: Mapping[str, Any]
    ) -> Iterator[tuple[Patient | PatientSets, list[Cut] | None]]:
        """Yield those of `job["shard"]` that make a row; the cuts are None without a task."""
        return ((patient, cuts) for patient, cuts in self.everybody(job) if cuts != [])

    def everybody(
        self, job: Mapping[str, Any]
    ) -> Iterator[tuple[Patient | PatientSets, list[Cut] | None]]:
        """Yield all patients of `job["shard"]`; those without cuts make no row."""
        task = self._experiment.task
        if task is None:
            for patient in self._read(job):
                yield patient, None
            return
        assert self._labels is not None
        labels = self._labels.of(Path(job["shard"]))
        train = job["split"] == "train"
        for patient in self._read(job):
            assert isinstance(patient, Patient)  # sets take no task
            left_out = train and not sampled(patient.subject_id, task.label_ratio)
            yield patient, [] if left_out else _cuts(patient, labels, task.hours if train else ())

    def rows(self, patient: Patient | PatientSets, cuts: Sequence[Cut] | None) -> Iterator["Row"]:
        """Yield the rows of one patient, one a cut."""
        from ehr_ray.train.task import family_of

        family, config = family_of(self._experiment), self._experiment.model
        if isinstance(patient, PatientSets):
            assert family.files.from_sets is not None
            yield family.files.from_sets(patient, config)
        elif cuts is None:
            yield family.transform(patient, config, self._vocabulary)
        else:
            for time, answer in cuts:
                row = family.transform(patient.until(time), config, self._vocabulary)
                yield {**row, "label": np.array(answer, np.float32)}

    def of(self, job: Mapping[str, Any]) -> Iterator["Row"]:
        """Yield the rows of a shard."""
        for patient, cuts in self.patients(job):
            yield from self.rows(patient, cuts)

    def _read(self, job: Mapping[str, Any]) -> Iterator[Patient | PatientSets]:
        if self._experiment.data.expanded is None:
            return read_patients(Path(job["shard"]), self._vocabulary)
        config = self._experiment.model
        return read_sets(
            Path(job["shard"]),
            job["files"],
            self._vocabulary,
            window=config.carry_minutes,
            always=config.always_carry,
        )


@dataclass(frozen=True)
class TaskTimes:
    """The prediction times of a task, read where its patients are.

    Args:
        labels: those of the task.
        share: of the subjects, the same ones each time.
    """

    labels: TaskLabels
    share: float = 1.0

    def of(self, labels: Labels) -> dict[int, list[int]]:
        """Return those of each subject of a shard, ascending, in microseconds since 1970."""
        return {w: times for w, times in labels.cuts().items() if sampled(w, self.share)}


def _cuts(patient: Patient, labels: Labels, hours: Sequence[float]) -> list[Cut]:
    """Return the times a patient is seen at: each label's own and hours of its admission."""
    found: list[Cut] = []
    for time, answer in labels.of(patient.subject_id):
        # Of an admission years before, the answer says nothing.
        before = patient.admitted[patient.admitted <= time]
        begun = int(before[-1]) if len(before) else patient.origin
        early = (begun + int(hour * 3.6e9) for hour in hours)
        found += [(cut, answer) for cut in (*(cut for cut in early if cut < time), time)]
    return found


def sampled(subject_id: int, share: float) -> bool:
    """Whether a subject is among the given share: by a hash of its id, so the same every time.

    Half of splitmix64, with another start: it stays, or runs would get other subjects.
    """
    mixed = (subject_id * GOLDEN + 0x632BE59BD9B4E019) % (1 << 64)
    mixed = ((mixed ^ (mixed >> 30)) * FIRST) % (1 << 64)
    return (mixed >> 11) / (1 << 53) < share
