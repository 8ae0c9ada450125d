"""`benchmark --only loading`, `steps`, `workers`: what is spent around the bare training step.

The loader beside batches that are made already, Ray beside a plain process, two workers beside one:
always the same small model on the same rows.
"""

import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ehr_ray.commands.benchmark.timing import Numbers, in_process, wall_seconds
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import Experiment, parse
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.training.launch import fit
from ehr_ray.runtime.training.start_log import read_starts
from ehr_ray.runtime.training.worker import Job, loader_of, train_here
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.task import family_of

WARM_STEPS = 5
"""First steps of a run, in which memory is still being touched, that are not counted."""


def loading(cohort: Path, place: Path) -> Numbers:
    """Patients a second from the loader, beside the bound of batches that are already made."""
    experiment = small_experiment(cohort, place, "loading")
    family = family_of(experiment)
    with prepared(experiment, family, on_ray=True) as data:
        loader = loader_of(experiment, family, data)
        patients = len(loader.train)

        def read() -> None:
            for _ in loader.train_steps(0, 0, 0, 1):
                pass

        made = list(loader.train_steps(0, 0, 0, 1))

        def touch() -> None:
            for step in made:
                for batch in step:
                    batch["value"].sum()

        read()
        ours, bound = patients / wall_seconds(read, 5), patients / wall_seconds(touch, 5)
        steps = wall_seconds(lambda: _train_bare(experiment, data, place / "bound"), 1)
        trained = patients * experiment.train.max_epochs / steps
    return {
        "patients per second": ours,
        "bound: batches made before": bound,
        "patients per second that training uses": trained,
        "loader over training": ours / trained,
    }


def steps(cohort: Path, place: Path) -> Numbers:
    """Step throughput of the Ray backend over the bare loop on the same batches, one worker."""
    bare: list[float] = []
    ray_: list[float] = []
    first_bare: list[float] = []
    first_ray: list[float] = []
    experiment = small_experiment(cohort, place, "steps", epochs=3)
    with prepared(experiment, family_of(experiment), on_ray=True) as data:
        for turn in range(3):
            for name, times, first in (("bare", bare, first_bare), ("ray", ray_, first_ray)):
                run = place / f"steps-{name}-{turn}"
                started = time.monotonic()
                ended = (_bare_process if name == "bare" else _on_ray)(experiment, data, run, 1)
                times += list(np.diff(ended[WARM_STEPS:]))
                first.append(ended[0] - started)
    return {
        "bare, ms per step": 1000 * statistics.median(bare),
        "Ray, ms per step": 1000 * statistics.median(ray_),
        "Ray over bare, step throughput": statistics.median(bare) / statistics.median(ray_),
        "bare, seconds to first step": statistics.median(first_bare),
        "Ray, seconds to first step": statistics.median(first_ray),
    }


def workers(cohort: Path, place: Path) -> Numbers:
    """Step throughput of two DDP workers over one, at the same global batch."""
    times: dict[int, list[float]] = {1: [], 2: []}
    if (os.cpu_count() or 1) < 2:
        raise ConfigError("--only workers: needs 2 CPUs")
    experiment = small_experiment(cohort, place, "workers", epochs=3)
    with prepared(experiment, family_of(experiment), on_ray=True) as data:
        for turn in range(2):
            for world in times:
                ended = _on_ray(experiment, data, place / f"workers-{world}-{turn}", world)
                times[world] += list(np.diff(ended[WARM_STEPS:]))
    one, two = statistics.median(times[1]), statistics.median(times[2])
    return {
        "1 worker, ms per step": 1000 * one,
        "2 workers, ms per step": 1000 * two,
        "2 workers over 1, step throughput": one / two,
    }


def small_experiment(cohort: Path, place: Path, name: str, epochs: int = 1) -> Experiment:
    """Return the experiment that is measured where none is given: a small SetVAE, not tracked."""
    return parse(
        {
            "family": "set_vae",
            "name": name,
            "output": str(place / "runs"),
            "model": {"sets_per_patient": 4, "width": 64, "reduced": 64, "latent": 16},
            "data": {"cohort": str(cohort.absolute()), "batch_size": 32},
            "train": {"max_epochs": epochs},
            "tracking": {"experiment": None},
        }
    )


def _job(experiment: Experiment, data: Prepared, run: Path) -> Job:
    run.mkdir(parents=True, exist_ok=True)
    return Job(experiment, data, run, run / ".progress.jsonl", None, run / "starts")


def _train_bare(experiment: Experiment, data: Prepared, run: Path) -> None:
    torch.set_num_threads(1)
    train_here(_job(experiment, data, run), LocalBackend())


def _bare_process(experiment: Experiment, data: Prepared, run: Path, world: int) -> list[float]:  # noqa: ARG001
    """Train in a plain process, as new as a Ray worker is."""
    in_process(_train_bare, experiment, data, run)
    return read_starts(run / "starts")[0].ended


def _on_ray(experiment: Experiment, data: Prepared, run: Path, world: int) -> list[float]:
    cluster = replace(experiment.cluster, num_workers=world)
    fit(_job(replace(experiment, cluster=cluster), data, run))
    return next(start.ended for start in read_starts(run / "starts") if start.rank == 0)
