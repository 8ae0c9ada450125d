"""A trained model over the patients of a shard: the same transform, collate and predict."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from ehr_ray.config.task import OUTPUTS
from ehr_ray.errors import InputError
from ehr_ray.events.batched import batched
from ehr_ray.events.labels import Labels
from ehr_ray.events.patient_features import FeatureCodes, FeatureReader
from ehr_ray.events.patients import Patient, read_patients
from ehr_ray.events.subgroups import Subgroup, SubgroupReader
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.rows import TaskTimes, sampled
from ehr_ray.storage import files, sync
from ehr_ray.train import checkpoint
from ehr_ray.train.allocator import keep_freed_memory
from ehr_ray.train.backend import local_device
from ehr_ray.train.prediction_tables import entries_table, list_column
from ehr_ray.train.predictor import BATCH_PATIENTS, Predictor

MICROSECONDS_PER_HOUR = 3_600_000_000
LABEL = "label"
"""Column of the samples of a task: bool, float64 or, of classes, the place of each, int64."""
Cut = Mapping[int, Sequence[int]]
"""Prediction times (microseconds since 1970) of each subject, ascending."""
Times = Cut | TaskTimes
"""Those of all subjects, which travel, or those of a task, read shard by shard."""
Sample = tuple[Patient, int]
"""A patient as known at a prediction time, and that time."""


@dataclass(frozen=True)
class Request:
    """What to compute for each sample of a shard besides the embedding.

    Args:
        checkpoint: folder or URI of the trained model.
        untrained: also embed with the same architecture as it was before training.
        features: codes that get features for the baselines; None computes none.
        diagnose: share of subjects whose latents and reconstructions are kept.
        outputs: share of subjects whose `Family.outputs` are kept.
        own_output: whether what a model trained for a task says of it answers the one asked for.
        answer: output of `Family.predict` that is the model's own logit for the task asked for.
        hours: hours after the origin at which the first sample of a subject is predicted too, by
            the events until then, where its prediction time is not earlier.
        hours_share: share of subjects that are predicted at hours.
        hours_fit: whether a probe is fitted on these rows; a model that gives its own `logit` is
            not asked for them then.
        subgroups: ways to divide patients; a column `subgroup/<name>` of the samples for each.
        origin: codes of the time origin in the cohort; None: those of the run.
        gpus: GPUs of each process that predicts; 0: it is on the CPU.
    """

    checkpoint: str | Path
    untrained: bool = False
    features: FeatureCodes | None = None
    diagnose: float = 0.0
    outputs: float = 0.0
    own_output: bool = True
    answer: str | None = None
    hours: tuple[float, ...] = ()
    hours_share: float = 1.0
    hours_fit: bool = False
    subgroups: Mapping[str, Subgroup] = field(default_factory=dict)
    origin: tuple[str, ...] | None = None
    gpus: float = 0.0


def check_gpus(gpus: float) -> None:
    """Raise InputError for what is no number of GPUs."""
    if not 0 <= gpus < math.inf:
        raise InputError(f"--gpus {gpus:g}: give the GPUs of each process, 0 or more")


def of_precision(experiment: Experiment, gpus: float) -> dict[str, str]:
    """Return what a key of predictions has besides where they are not made in exact float32."""
    plan, exact = experiment.train, {"precision": "float32", "matmul_precision": "highest"}
    made = {name: getattr(plan, name) for name in exact} if gpus else {}
    return {name: value for name, value in made.items() if value != exact[name]}


@dataclass
class ProcessModel:
    """A trained model in the process that asks for it, which loads it once.

    Args:
        source: folder or URI of its checkpoint.
        gpus: GPUs of the process; 0: it is on the CPU.
    """

    source: str | Path
    gpus: float = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Leave the models behind: each process loads its own."""
        return {"source": self.source, "gpus": self.gpus}

    @cached_property
    def loaded(self) -> checkpoint.Loaded:
        """The trained model, on the device asked for."""
        device = local_device(self.gpus, "--gpus ")
        loaded = checkpoint.load(sync.fetch(self.source))
        loaded.model.to(device)
        return loaded

    @cached_property
    def predictor(self) -> Predictor:
        """The trained model over patients."""
        return Predictor.of(self.loaded)

    @cached_property
    def untrained(self) -> Predictor:
        """The same architecture with the weights training started from."""
        loaded = self.loaded
        # As `starting_model` builds it: by the same seed, on the CPU.
        torch.manual_seed(loaded.experiment.seed)
        model = loaded.family.build(loaded.experiment.model, loaded.vocabulary).eval()
        for name, trained in loaded.model.named_buffers():
            model.get_buffer(name).copy_(trained)  # tables that are given, not learned
        return replace(self.predictor, model=model.to(next(loaded.model.parameters()).device))


class ShardPredictor:
    """The function of one shard: reads patients, cuts them, predicts, writes Parquet.

    `model` is that of another function, where several are of one model.
    """

    def __init__(
        self, request: Request, times: Times | None = None, model: ProcessModel | None = None
    ) -> None:
        self.request, self.times = request, times
        self.model = model or ProcessModel(request.checkpoint, request.gpus)

    @property
    def loaded(self) -> checkpoint.Loaded:
        """The trained model, on the device asked for."""
        return self.model.loaded

    @property
    def predictor(self) -> Predictor:
        """The trained model over patients."""
        return self.model.predictor

    @cached_property
    def reader(self) -> FeatureReader:
        """What baselines read of a patient."""
        assert self.request.features is not None
        return FeatureReader(self.loaded.vocabulary, self.request.features)

    def __call__(self, job: Mapping[str, Any]) -> int:
        """Predict every sample of `job["shard"]` into `job["target"]`; return their number."""
        target = Path(job["target"])
        target.mkdir(parents=True, exist_ok=True)
        shard = Path(job["shard"])
        labels, cuts = labels_and_cuts(self.times, shard)
        patients = self.patients(shard)
        subgroups = SubgroupReader(shard, self.request.subgroups)
        tables: dict[str, list[pa.Table]] = {}
        count = 0
        for samples in batched(_samples(patients, cuts), BATCH_PATIENTS):
            made = self._tables(samples, first=count)
            hours = self._hours(samples, cuts, made["samples"], count)
            made |= {"hours": hours} if hours is not None else {}
            for name in self.request.subgroups:
                groups = [subgroups.group_of(name, p.subject_id, time) for p, time in samples]
                column = pa.array(groups, pa.string())
                made["samples"] = made["samples"].append_column(f"subgroup/{name}", column)
            if labels is not None:
                column = _labels_of(made["samples"], labels)
                made["samples"] = made["samples"].append_column(LABEL, column)
            for name, table in made.items():
                tables.setdefault(name, []).append(table)
            count += len(samples)
        for name, parts in tables.items():
            files.write_parquet(pa.concat_tables(parts), target / f"{name}.parquet")
        return count

    def patients(self, shard: Path) -> Iterator[Patient]:
        """Yield the patients of a shard as the model reads them."""
        torch.set_num_threads(1)  # as many processes as CPUs run side by side
        keep_freed_memory()
        vocabulary = self.loaded.vocabulary
        if self.request.origin is not None:
            vocabulary = replace(vocabulary, origin=self.request.origin)
        return read_patients(shard, vocabulary)

    def _tables(self, samples: list[Sample], first: int) -> dict[str, pa.Table]:
        """Return `samples`, a row each, and what the model tells of a share of the subjects."""
        predictor = self.predictor
        rows = predictor.rows(patient for patient, _ in samples)
        batch = predictor.batch(rows)
        columns: dict[str, Any] = {
            "subject_id": np.array([p.subject_id for p, _ in samples], np.int64),
            "prediction_time": pa.array([t for _, t in samples], pa.int64()).cast(
                pa.timestamp("us")
            ),
        }
        if self.times is not None:
            columns["timed"] = [patient.timed(self.loaded.vocabulary) for patient, _ in samples]
        for name, values in predictor.outputs(batch).items():
            if name not in OUTPUTS.values() or self.request.own_output:
                columns[name] = list_column(values)
            if name == self.request.answer:
                columns["logit"] = list_column(values)
        if self.request.untrained:
            columns["untrained"] = list_column(self.model.untrained.outputs(batch)["embedding"])
        if self.request.features is not None:
            columns["features"] = list_column(self._features(samples))
            if self.request.features.measured:
                extra = [self.reader.extra(patient, time) for patient, time in samples]
                columns["extra"] = list_column(torch.from_numpy(np.stack(extra)))
        tables = {"samples": pa.table(columns)}
        evaluation = predictor.family.evaluation
        diagnoses = {"latents": evaluation.latents, "tokens": evaluation.reconstruct}
        for share, functions in (
            (self.request.diagnose, diagnoses),
            (self.request.outputs, evaluation.outputs),
        ):
            chosen = [i for i, (p, _) in enumerate(samples) if sampled(p.subject_id, share)]
            if chosen:
                part = predictor.batch([rows[i] for i in chosen])
                where = torch.tensor([first + i for i in chosen])
                for name, function in functions.items():
                    outputs = {} if function is None else predictor.outputs(part, function)
                    if outputs:  # a family may have none of some architecture
                        tables[name] = entries_table(outputs, where)
        return tables

    def _hours(
        self, samples: list[Sample], cuts: Cut | None, done: pa.Table, first: int
    ) -> pa.Table | None:
        """Predict at each hour after the origin by what was known then; None without such rows.

        A row has the place of its sample, the hour and what a comparison reads. Of a subject with
        several prediction times the first counts: an hour after the origin has one label.
        """
        cuts, parts = cuts or {}, []
        firsts = [
            i
            for i, (p, time) in enumerate(samples)
            if cuts.get(p.subject_id, [None])[0] == time
            and sampled(p.subject_id, self.request.hours_share)
        ]
        for hour in self.request.hours:
            at = [p.origin + round(hour * MICROSECONDS_PER_HOUR) for p, _ in samples]
            there = [i for i in firsts if at[i] <= samples[i][1]]
            if not there:
                continue
            early = [(samples[i][0].until(at[i]), at[i]) for i in there]
            # Where the prediction is made at this very hour it is there already.
            known = all(at[i] == samples[i][1] for i in there)
            own = "logit" in done.column_names
            columns = {
                "sample": pa.array(np.array(there, np.int64) + first),
                "hour": pa.array(np.full(len(there), hour)),
            }
            if not own or not self.request.hours_fit:
                name = "logit" if own else "embedding"
                columns[name] = done.take(there)[name] if known else self._at_hour(early, name)
            if self.request.features is not None:
                columns["features"] = (
                    done.take(there)["features"] if known else list_column(self._features(early))
                )
            parts.append(pa.table(columns))
        return pa.concat_tables(parts) if parts else None

    def _at_hour(self, samples: list[Sample], name: str) -> pa.Array:
        rows = self.predictor.rows(patient for patient, _ in samples)
        outputs = self.predictor.outputs(self.predictor.batch(rows))
        return list_column(outputs[self.request.answer or name if name == "logit" else name])

    def _features(self, samples: list[Sample]) -> torch.Tensor:
        rows = [self.reader.simple(patient, time) for patient, time in samples]
        return torch.from_numpy(np.stack(rows))


def labels_and_cuts(times: Times | None, shard: Path) -> tuple[Labels | None, Cut | None]:
    """Return the labels of a shard's subjects where times are a task's, and the times; or None.

    Other times may be of more subjects.
    """
    if not isinstance(times, TaskTimes):
        return None, times
    labels = times.labels.of(shard)
    return labels, times.of(labels)


def _labels_of(samples: pa.Table, labels: Labels) -> pa.Array:
    time = samples["prediction_time"].cast(pa.int64()).to_numpy()
    return pa.array(labels.look_up(samples["subject_id"].to_numpy(), time))


def _samples(patients: Iterable[Patient], cuts: Cut | None) -> Iterator[Sample]:
    for patient in patients:
        if cuts is None:
            last = int(patient.time[-1]) if len(patient.time) else patient.origin
            yield patient, max(last, patient.origin)
        else:
            for time in cuts.get(patient.subject_id, ()):
                yield patient.until(time), int(time)
