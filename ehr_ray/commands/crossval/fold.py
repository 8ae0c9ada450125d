"""One job of `crossval`: a fold's cohort, `train` on it, `evaluate` on its test patients."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from ehr_ray.commands.crossval.plan import MODEL, FoldJob
from ehr_ray.commands.evaluate.command import NO_TASK, evaluate
from ehr_ray.commands.train.command import train
from ehr_ray.errors import ConfigError
from ehr_ray.evaluation.tasks.verdicts import NETWORK
from ehr_ray.events.folds import write_fold
from ehr_ray.runtime.screen import Screen
from ehr_ray.storage import files, sync


class Quiet(Screen):
    """Says nothing: many folds train at a time."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def passing(self, text: str) -> None:
        """Say nothing."""


def run_fold(job: FoldJob) -> None:
    """Write the job's predictions of tuning and test rows, and the metrics of its evaluations.

    `<key>.json` has metrics.json of each task, and of `none` for all patients; `<key>.parquet`
    has `model, outcome, part, subject_id, prediction_time, label, probability`.
    """
    torch.set_num_threads(1)
    folder = job.folder / f".{job.key}"
    shutil.rmtree(folder, ignore_errors=True)  # of a job that was killed
    try:
        cohort = sync.fetch_cohort(job.experiment.data.cohort, shards=True)
        fold = write_fold(cohort, job.splits, folder / "cohort")
        data = replace(job.experiment.data, cohort=str(fold))
        experiment = replace(job.experiment, data=data, output=str(folder / "runs"))
        run = train(experiment, screen=Quiet()).run
        tasks = (*job.tasks, NO_TASK) if job.whole else job.tasks
        for task in tasks:
            evaluate(run, task=task, output=folder / task, on_ray=False, pages=False)
        metrics = {t: json.loads((folder / t / "metrics.json").read_text()) for t in tasks}
        files.write_text(job.folder / f"{job.key}.json", json.dumps(metrics))
        rows = [row for task in job.tasks for row in _predictions(job, task, folder / task)]
        with files.new_file(job.target) as partial:
            pd.concat(rows).to_parquet(partial, index=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _predictions(job: FoldJob, task: str, results: Path) -> Iterator[pd.DataFrame]:
    """Yield what `evaluate` wrote of the model and, with the first model, of each baseline.

    Of an ensemble's other members their network is told too.
    """
    folders = {job.name: results / "predictions"}
    beside = results / "predictions" / "baselines"
    if job.first and job.experiment.evaluation.baselines:
        folders |= {path.name: path for path in sorted(beside.glob("*"))}
        for name in set(folders) & set(job.experiment.crossval.variants):
            raise ConfigError(f"crossval.variants.{name}: a baseline has this name; change it")
    elif job.name == MODEL and (beside / NETWORK).is_dir():
        folders[NETWORK] = beside / NETWORK
    for model, folder in folders.items():
        for part in ("tuning", "held_out"):
            rows = files.read_parquet(folder / f"{part}.parquet").to_pandas()
            renamed = rows.rename(
                columns={"boolean_value": "label", "predicted_boolean_probability": "probability"}
            )
            yield renamed.assign(model=model, outcome=task, part=part)
