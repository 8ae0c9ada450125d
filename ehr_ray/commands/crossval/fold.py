"""One task of `crossval`: a fold's cohort, a model trained on it, what it says of patients."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from ehr_ray.commands.train.command import train
from ehr_ray.events.folds import write_fold
from ehr_ray.events.outcomes import censoring, censoring_weights
from ehr_ray.events.patients import cohort_shards, read_patients
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.families.hcat.outcome_baselines import Columns, fit_baselines
from ehr_ray.families.hcat.predict import baseline_codes, thinned
from ehr_ray.families.hcat.tokenizer import Tokenizer
from ehr_ray.family import Batch
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.dataset import vocabulary_of
from ehr_ray.runtime.screen import Screen
from ehr_ray.storage import files
from ehr_ray.train.checkpoint import load
from ehr_ray.train.predictor import Predictor

MODEL: Final = "model"
BASELINES: Final = "baselines"
CORE: Final = (0, 2)
"""Places of clinical and pathological among the modalities."""


class Quiet(Screen):
    """Says nothing: many folds train at a time."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def passing(self, text: str) -> None:
        """Say nothing."""


@dataclass(frozen=True)
class FoldJob:
    """What one task does, picklable."""

    name: str
    repeat: int
    fold: int
    member: int
    experiment: Experiment
    cohort: Path
    splits: dict[str, list[int]]
    root: Path

    @property
    def key(self) -> str:
        """Name of the task and of its file."""
        return f"{self.name}-r{self.repeat}-f{self.fold}-m{self.member}"

    @property
    def target(self) -> Path:
        """The file it leaves."""
        return self.root / "jobs" / f"{self.key}.parquet"

    @property
    def fold_columns(self) -> dict[str, int]:
        """Columns of its rows."""
        return {"repeat": self.repeat, "fold": self.fold, "member": self.member}


def run_fold(job: FoldJob, events: pa.Table) -> None:
    """Write the task's rows: `model, outcome, part, subject_id, label, days, state, weight,
    probability`, of the fold's test patients and of its tuning ones.
    """  # noqa: D205
    torch.set_num_threads(1)
    folder = job.root / "jobs" / f".{job.key}"
    try:
        cohort = write_fold(job.cohort, events, job.splits, folder)
        rows = _baselines(job, cohort) if job.name == BASELINES else _trained(job, cohort)
        with files.new_file(job.target) as partial:
            pd.concat(list(rows)).to_parquet(partial, index=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(job.root / "jobs" / job.experiment.name, ignore_errors=True)


def _trained(job: FoldJob, cohort: Path) -> Iterator[pd.DataFrame]:
    experiment = job.experiment
    experiment = replace(experiment, data=replace(experiment.data, cohort=str(cohort)))
    shutil.rmtree(experiment.directory, ignore_errors=True)
    run = train(experiment, screen=Quiet()).run
    predictor = Predictor.of(load(run))
    batches = {split: _batch(predictor, cohort, split) for split in _SPLITS}
    task_outputs = predictor.family.evaluation.task_outputs
    assert task_outputs is not None
    names = task_outputs(experiment.model).values()
    for split, part in _SPLITS.items():
        if part is not None:
            outputs = predictor.outputs(batches[split])
            logits = torch.stack([outputs[name] for name in names], 1)
            yield _rows(job, job.name, part, batches, split, torch.sigmoid(logits).numpy())
    if job.name == MODEL:
        assert predictor.model is not None
        with torch.inference_mode():
            for missing in range(1, 5):
                # Every member is without the same ones, so averaging them brings nothing back.
                logits = thinned(predictor.model, batches["held_out"], missing, job.repeat)
                probability = torch.sigmoid(logits).numpy()
                name = f"{job.name}@{missing} missing"
                yield _rows(job, name, "test", batches, "held_out", probability)


_SPLITS: Final = {"train": None, "tuning": "tuning", "held_out": "test"}


def _batch(predictor: Predictor, cohort: Path, split: str) -> Batch:
    """Return a whole split as one batch: imputation and baselines are of all its patients."""
    shards = cohort_shards(cohort, split)
    rows = [predictor.rows(read_patients(shard, predictor.vocabulary)) for shard in shards]
    return predictor.batch([row for part in rows for row in part])


def _rows(
    job: FoldJob,
    model: str,
    part: str,
    batches: dict[str, Batch],
    split: str,
    probability: np.ndarray,
) -> pd.DataFrame:
    """Return the rows of both outcomes; weights are by the censoring of the fold's train."""
    frames = []
    batch = batches[split]
    for place, outcome in enumerate(job.experiment.model.outcomes):
        days, state = _followed(batch, place)
        curve = censoring(*_followed(batches["train"], place), outcome)
        frames.append(
            pd.DataFrame(
                {
                    "model": model,
                    "outcome": outcome.name,
                    "part": part,
                    "subject_id": batch["subject_id"].numpy(),
                    "label": batch["label"][:, place].numpy().astype(np.int8),
                    "days": days,
                    "state": state,
                    "weight": censoring_weights(days, state, outcome, curve),
                    "probability": probability[:, place].astype(np.float64),
                }
            )
        )
    return pd.concat(frames)


def _followed(batch: Batch, place: int) -> tuple[np.ndarray, np.ndarray]:
    days = batch["days"][:, place].double().numpy()
    return np.where(days < 0, np.nan, days), batch["state"][:, place].numpy().astype(np.int8)


def _baselines(job: FoldJob, cohort: Path) -> Iterator[pd.DataFrame]:
    """Fit the baselines on all of the fold's training part, train and tuning."""
    experiment = job.experiment
    data = experiment.data
    vocabulary = vocabulary_of(cohort, data.min_code_count, origin=data.origin)
    predictor = Predictor(get_family(experiment.family), experiment.model, vocabulary)
    batches = {split: _batch(predictor, cohort, split) for split in _SPLITS}
    columns = {s: _columns(experiment.model, vocabulary, b) for s, b in batches.items()}
    fit = Columns(
        *(
            np.concatenate([getattr(columns[s], name) for s in ("train", "tuning")])
            for name in ("core", "tables", "tiles")
        )
    )
    made: dict[str, dict[str, list[np.ndarray]]] = {}
    for place, _ in enumerate(experiment.model.outcomes):
        label = np.concatenate([batches[s]["label"][:, place].numpy() for s in ("train", "tuning")])
        known = label >= 0
        rows = Columns(fit.core[known], fit.tables[known], fit.tiles[known])
        found = fit_baselines(rows, label[known], seed=experiment.seed + job.repeat)
        for name, (predict, unseen) in found.items():
            whole = np.full(len(label), np.nan)
            whole[known] = unseen
            part = made.setdefault(name, {"unseen": [], "test": []})
            part["unseen"].append(whole)
            part["test"].append(predict(columns["held_out"]))
    for name, part in made.items():
        unseen, test = (np.stack(part[k], 1) for k in ("unseen", "test"))
        size = len(batches["train"]["subject_id"])
        yield _rows(job, name, "tuning", batches, "train", unseen[:size])
        yield _rows(job, name, "tuning", batches, "tuning", unseen[size:])
        yield _rows(job, name, "test", batches, "held_out", test)


def _columns(config: Any, vocabulary: Vocabulary, batch: Batch) -> Columns:
    """Return the codes' mean values, NaN where missing and 0 or 1 for flags, by kind."""
    tokenizer = Tokenizer(config, vocabulary)
    mean, count, _ = tokenizer.columns(batch)
    there = (count > 0).numpy()
    layout = tokenizer.layout
    values = np.where(there, mean.numpy(), np.nan).astype(np.float64)
    values[:, ~layout.valued] = there[:, ~layout.valued]
    small = baseline_codes(config, vocabulary)
    feature = np.isin(np.arange(len(vocabulary)), np.concatenate(layout.columns))
    return Columns(
        values[:, np.isin(layout.modality, CORE) & small],
        values[:, small],
        values[:, feature & ~small],
    )
