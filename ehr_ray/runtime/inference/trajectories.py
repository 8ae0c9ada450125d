"""Futures of a shard's patients, on Ray Data or in this process, and what their records answer."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ehr_ray.events.batched import batched
from ehr_ray.events.patients import Patient, read_patients
from ehr_ray.events.zero_shot import ZeroShot
from ehr_ray.family import Draw, Horizon
from ehr_ray.runtime.data.tasks import Say, run_shards
from ehr_ray.runtime.inference.shards import Cut, ShardPredictor, Times, labels_and_cuts
from ehr_ray.storage import files, sync
from ehr_ray.train.prediction_tables import read_tables
from ehr_ray.train.predictor import BATCH_PATIENTS

FIT_PATIENTS: Final = 256
"""Records at most by which a family fits what it draws with."""
_DRAWS_AT_ONCE: Final = 128
"""Draws that are computed together, which bounds memory."""

ANSWERS: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64()),
        pa.field("prediction_time", pa.timestamp("us")),
        pa.field("happened", pa.bool_()),
        pa.field("known_before", pa.bool_()),
    ]
)
"""Whether the code occurred, null where that is not known, and whether any event came before."""
DRAWN: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64()),
        pa.field("prediction_time", pa.timestamp("us")),
        pa.field("occurred", pa.int64()),
        pa.field("cut", pa.int64()),
    ]
)
"""In how many of the draws the code occurred, and how many were cut before they ended."""


@dataclass
class ShardAnswers:
    """The function of one shard: what its records answer, a row a prediction."""

    shards: ShardPredictor
    question: ZeroShot
    times: Times | None

    def __call__(self, job: Mapping[str, Any]) -> int:
        """Write `ANSWERS` of `job["shard"]` to `job["target"]`; return the rows."""
        vocabulary, rows = self.shards.loaded.vocabulary, []
        codes = self.question.codes(vocabulary), self.question.ends(vocabulary)
        shard = Path(job["shard"])
        _, cuts = labels_and_cuts(self.times, shard)
        for patient in self.shards.patients(shard):
            for at in self.question.times(patient, cuts):
                answer = self.question.answer(patient, at, *codes)
                rows.append((patient.subject_id, at, answer, bool((patient.time <= at).any())))
        _write(Path(job["target"]) / "answers.parquet", rows, ANSWERS)
        return len(rows)


@dataclass
class ShardTrajectories:
    """The function of one shard: futures of each prediction, and what came of them."""

    shards: ShardPredictor
    question: ZeroShot
    cuts: Cut
    fit_on: Sequence[str | Path]
    """Shards of the run's own cohort, of patients it was not trained on."""
    seed: int

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what draws: each process fits its own."""
        return {name: v for name, v in vars(self).items() if name not in ("draw", "codes")}

    @cached_property
    def draw(self) -> Draw:
        """What draws futures."""
        loaded, predictor = self.shards.loaded, self.shards.predictor
        given = loaded.family.evaluation.trajectories
        assert given is not None
        shards = (sync.in_store(path) for path in self.fit_on)
        patients = itertools.chain.from_iterable(
            read_patients(shard, loaded.vocabulary) for shard in shards
        )
        # The same patients in every process, so that all draw alike.
        groups = batched(itertools.islice(patients, FIT_PATIENTS), BATCH_PATIENTS)
        batches = (predictor.batch(predictor.rows(group)) for group in groups)
        return given.fit(loaded.model, loaded.vocabulary, batches)

    @cached_property
    def codes(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the codes asked for and those that end a future, [V] both."""
        vocabulary = self.shards.loaded.vocabulary
        return self.question.codes(vocabulary), self.question.ends(vocabulary)

    def __call__(self, job: Mapping[str, Any]) -> float:
        """Write `DRAWN` of `job["shard"]` to `job["target"]`; return the CPU seconds of drawing."""
        rows, seconds = [], 0.0
        for patient, at in self._samples(Path(job["shard"])):
            draw, begun = self.draw, time.process_time()
            rows.append((patient.subject_id, at, *self._count(draw, patient)))
            seconds += time.process_time() - begun
        _write(Path(job["target"]) / "drawn.parquet", rows, DRAWN)
        return seconds

    def _samples(self, shard: Path) -> Iterator[tuple[Patient, int]]:
        for patient in self.shards.patients(shard):
            for at in self.cuts.get(patient.subject_id, ()):
                yield patient.until(at), at

    def _count(self, draw: Draw, patient: Patient) -> tuple[int, int]:
        """Return in how many draws the code occurs, and how many were cut."""
        predictor, (codes, ends) = self.shards.predictor, self.codes
        batch = predictor.batch(predictor.rows([patient]))
        start, asked = patient.end_minute, torch.from_numpy(codes)
        end = start + 60 * self.question.hours
        horizon = Horizon(start=start, end=end, codes=ends, events=self.question.events)
        occurred = cut = 0
        for numbers in torch.arange(self.question.draws).split(_DRAWS_AT_ONCE):
            found = draw(batch, horizon, numbers, self.seed)
            there = (found["code"] >= 0) & asked[found["code"].clamp(min=0)]
            occurred += int(there.any(1).sum())
            cut += int(found["cut"].sum())
        return occurred, cut


def answers(
    shards: Sequence[Path], folder: Path, function: ShardAnswers, *, on_ray: bool, say: Say
) -> pa.Table:
    """Return `ANSWERS` of shards, in their order."""
    targets = [folder / f"{i:05d}" for i in range(len(shards))]
    _run(shards, targets, function, on_ray, say, "read records of shards")
    found = read_tables(targets, "answers")
    return ANSWERS.empty_table() if found is None else found


def trajectories(
    shards: Sequence[Path], folder: Path, function: ShardTrajectories, *, on_ray: bool, say: Say
) -> tuple[pa.Table, float]:
    """Return `DRAWN` of shards, in their order, and the CPU seconds that drawing took."""
    targets = [folder / f"{i:05d}" for i in range(len(shards))]
    seconds = _run(shards, targets, function, on_ray, say, "drew futures of shards")
    found = read_tables(targets, "drawn")
    return (DRAWN.empty_table() if found is None else found), float(sum(seconds))


def _run(
    shards: Sequence[Path], targets: list[Path], function: Any, on_ray: bool, say: Say, verb: str
) -> list[Any]:
    pairs = zip(shards, targets, strict=True)
    jobs = [{"shard": str(shard), "target": str(target)} for shard, target in pairs]
    return run_shards(jobs, function, on_ray=on_ray, say=say, verb=verb, pool=True)


def _write(path: Path, rows: list[tuple[Any, ...]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    arrays = [
        pa.array(np.array(column, np.int64)).cast(field.type)
        if pa.types.is_timestamp(field.type)
        else pa.array(column, field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    files.write_parquet(pa.Table.from_arrays(arrays, schema=schema), path)
