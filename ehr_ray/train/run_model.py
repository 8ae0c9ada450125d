"""A trained model over tables of events in memory: what `ehr_ray.load` gives; needs no Ray."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.config.task import OUTPUTS
from ehr_ray.errors import InputError
from ehr_ray.evaluation.coverage import MIN_KNOWN, check_min_known, coverage_of
from ehr_ray.events.event_table import check_zones, events_of, like, times_of
from ehr_ray.events.label_tasks import Kind, canonical_task
from ehr_ray.events.patients import Patient, patients_of, without_events_line
from ehr_ray.family import Batch
from ehr_ray.train import checkpoint
from ehr_ray.train.checkpoint import Loaded
from ehr_ray.train.predictor import Predictor

NETWORK_ALONE = (
    "results of this run are of an ensemble (evaluation.ensemble), whose trees and regression are "
    "no part of the model: it answers by the network alone, as predictions/baselines/network does"
)


@dataclass(frozen=True)
class RunModel(Loaded):
    """A trained model with all it needs to be applied, on CPU, and where it was loaded from."""

    folder: Path
    """Of the run, or what `ehr-ray export` wrote."""
    weights: Path
    """The file of its weights."""

    def embed(self, events: Any, *, min_known_events: float = MIN_KNOWN) -> Any:
        """Return `subject_id, embedding` of each subject, by all of its events, ids ascending.

        Args:
            events: MEDS events as a pandas DataFrame or an Arrow table, rows in any order, but
                that of two values of a code at one time the later row counts: `subject_id`, `time`
                (null: static; with a zone it becomes UTC), `code` and, if there are any,
                `numeric_value`, in the codes and units of the cohort the model was trained on.
            min_known_events: share of the events whose codes the model must know.

        Returns:
            A table of the kind given; embeddings are lists of float32.

        Raises:
            InputError: a column is missing or of another type; the model knows fewer events.
        """
        patients = self._patients(events, min_known_events)
        parts = [outputs["embedding"].float().numpy() for outputs in self._outputs(patients)]
        rows = [row for part in parts for row in part]
        columns = {
            "subject_id": pa.array([p.subject_id for p in patients], pa.int64()),
            "embedding": pa.array(rows, pa.list_(pa.float32())),
        }
        return like(pa.table(columns), events)

    def predict(
        self,
        events: Any,
        *,
        task: str | None = None,
        prediction_times: Any = None,
        min_known_events: float = MIN_KNOWN,
    ) -> Any:
        """Return `subject_id, probability` of each subject, calibrated as `evaluate` does.

        Of a task of numbers it is `value`, in the unit of its labels, of one of classes
        `probability/<class>` of each: as they come from the model trained for it, else from the
        probe that `evaluate` fitted.

        Args:
            events: as of `embed`.
            task: what is predicted; may be left out where the model predicts one task only.
            prediction_times: table of `subject_id` and `prediction_time`; each row gives one
                `subject_id, prediction_time` and these, in the order given, by the events until
                then, that minute included; a warning counts the rows that have none with a time.
                Without it all events of a subject are read.
            min_known_events: as of `embed`.

        Returns:
            A table of the kind of `events`.

        Raises:
            InputError: the model predicts no task, or several and none was chosen; a subject has a
                prediction time and no events; events say the zone of their times and prediction
                times do not, or the reverse.
        """
        kind, _ = self._kind(task)
        if self.experiment.evaluation.ensemble and self._trained_for(task):
            warnings.warn(NETWORK_ALONE, stacklevel=2)
        own = self._trained_for(task) and kind != "binary"
        found = None if own else self._task_probe(task)
        patients = self._patients(events, min_known_events)
        columns = {"subject_id": pa.array([p.subject_id for p in patients], pa.int64())}
        if prediction_times is not None:
            times = times_of(prediction_times)
            check_zones(events, prediction_times)
            patients = _cut(patients, times)
            empty = sum(not patient.timed(self.vocabulary) for patient in patients)
            if empty:
                warnings.warn(without_events_line(empty, len(patients)), stacklevel=2)
            columns = {name: times[name] for name in times.column_names}
        names = self.answers(task)
        parts = [np.zeros((0, len(names)))]
        for outputs in self._outputs(patients):
            if found is not None:
                said = found.answer(outputs)
            else:
                said = outputs[OUTPUTS[kind]].double()
                said = (said.softmax(1) if kind == "classes" else said).numpy()
            parts.append(said.reshape(-1, len(names)))
        rows = np.concatenate(parts)
        columns |= {name: pa.array(rows[:, k], pa.float64()) for k, name in enumerate(names)}
        return like(pa.table(columns), events)

    def answers(self, task: str | None = None) -> tuple[str, ...]:
        """Return the columns by which `predict` answers a task."""
        kind, classes = self._kind(task)
        if kind == "classes":
            return tuple(f"probability/{name}" for name in classes)
        return ("value" if kind == "regression" else "probability",)

    def _trained_for(self, task: str | None) -> bool:
        """Whether a task, or the one that is meant without a name, is what was trained for."""
        trained = self.experiment.task
        return trained is not None and (task is None or canonical_task(task) == trained.name)

    def _kind(self, task: str | None) -> tuple[Kind, tuple[str, ...]]:
        """Return the kind of a task and its classes; what nothing is known of is binary."""
        trained = self.experiment.task
        if trained is not None and self._trained_for(task):
            return trained.kind, trained.classes
        from ehr_ray.train.task_probe import read_task_probes  # with scikit-learn

        probes = read_task_probes(self.folder, self.weights)
        if task is not None:
            found = probes.get(canonical_task(task))
        else:  # as `_task_probe` understands it
            known = {*probes, *self._own_outputs()}
            found = probes.get(known.pop()) if len(known) == 1 else None
        return ("binary", ()) if found is None else (found.kind, found.classes)

    def _patients(self, events: Any, min_known_events: float) -> list[Patient]:
        """Return the patients of a table; warnings tell of unknown codes and of no value at all."""
        check_min_known(min_known_events, "min_known_events=")
        table = events_of(events)
        counts = {
            str(row["values"]): row["counts"] for row in table["code"].value_counts().to_pylist()
        }
        coverage = coverage_of(counts, self.vocabulary)
        if not coverage.enough(min_known_events):
            raise InputError(
                f"events: {coverage.line()}; give those of the run's cohort, or min_known_events "
                "below that share to go on all the same"
            )
        if coverage.unknown:
            warnings.warn(coverage.line(), stacklevel=3)
        if (
            len(table)
            and self.vocabulary.valued.any()
            and not pc.is_finite(table["numeric_value"]).to_numpy().any()
        ):
            warnings.warn(
                "no event has a numeric_value that is a number; the model was trained with values",
                stacklevel=3,
            )
        return list(patients_of(table, self.vocabulary))

    def _outputs(self, patients: list[Patient]) -> Iterator[Batch]:
        return Predictor.of(self).over_patients(patients)

    def _task_probe(self, task: str | None) -> Any:
        # Only who predicts needs scikit-learn, which takes a second.
        from ehr_ray.evaluation.tasks.probe import Probe
        from ehr_ray.train.task_probe import TaskProbe, read_task_probes

        found = read_task_probes(self.folder, self.weights)
        own = self._own_outputs()
        trained_for = self.experiment.task.name if self.experiment.task else None
        known = sorted({*found, *own} | ({trained_for} if trained_for else set()))
        wanted = trained_for if task is None else canonical_task(task)
        if wanted is None and len(known) == 1:
            wanted = known[0]
        if wanted in found:
            return found[wanted]
        if wanted in own:
            warnings.warn(
                f"{wanted}: probabilities are not calibrated; run `ehr-ray evaluate` first",
                stacklevel=3,
            )
            return TaskProbe(wanted, own[wanted], "", Probe.of_logit())
        if not known:
            raise InputError(
                f"{self.folder}: predicts no task: it was trained for none, and no probe was "
                "fitted; run `ehr-ray evaluate` on it with a --task"
            )
        asked = "several tasks and none was chosen" if wanted is None else f"no task {wanted!r}"
        raise InputError(f"{self.folder}: {asked}; give task= one of {', '.join(known)}")

    def _own_outputs(self) -> dict[str, str]:
        """Return the outputs that are logits of a task by themselves, by task."""
        given = self.family.evaluation.task_outputs
        own = dict(given(self.experiment.model)) if given else {}
        task = self.experiment.task
        return own | ({task.name: "logit"} if task and task.kind == "binary" else {})


def load_run(run: Path) -> RunModel:
    """Load the model of a run, or of an exported folder, on CPU and in eval mode."""
    weights = checkpoint.checkpoint_folder(run) / checkpoint.WEIGHTS
    loaded = checkpoint.load(run)
    return RunModel(**vars(loaded), folder=run, weights=weights)


def _cut(patients: list[Patient], times: pa.Table) -> list[Patient]:
    """Return the patient of each prediction time, as known then."""
    by_id = {patient.subject_id: patient for patient in patients}
    subjects = times["subject_id"].to_pylist()
    missing = sum(subject not in by_id for subject in subjects)
    if missing:
        raise InputError(
            f"prediction_times: {missing} of {len(subjects)} rows are of subjects without events; "
            "drop them or give their events"
        )
    cuts = times["prediction_time"].cast(pa.int64()).to_pylist()
    return [by_id[subject].until(cut) for subject, cut in zip(subjects, cuts, strict=True)]
