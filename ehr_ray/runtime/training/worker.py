"""What each Ray Train worker runs: the one loop, with Ray's process group behind it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ehr_ray.errors import (
    RunError,
    UserError,
    error_of_kind,
)
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch, Row
from ehr_ray.runtime.data.prepared import Prepared, fetched
from ehr_ray.runtime.progress import ProgressFile
from ehr_ray.runtime.tracking import UNTOLD, Tracked, Tracker, untold
from ehr_ray.runtime.training.ranking import MEASURES, RankingBackend, TrialRanking, measured
from ehr_ray.runtime.training.sending import sending
from ehr_ray.runtime.training.start_log import StartFile, keep_to_core
from ehr_ray.storage import runs, sync
from ehr_ray.storage.lease import Lease
from ehr_ray.storage.lock import run_lock
from ehr_ray.storage.paths import canonical, is_uri, local, uri_of
from ehr_ray.train.allocator import keep_freed_memory, pass_over_imports, return_freed_memory
from ehr_ray.train.backend import Backend, begin_sum, sent_once
from ehr_ray.train.checkpoint import Progress, drop_states, saved_progress
from ehr_ray.train.data_checks import check_batches
from ehr_ray.train.history import HISTORY
from ehr_ray.train.loader import Loader
from ehr_ray.train.loop import train
from ehr_ray.train.numerics import numerics
from ehr_ray.train.report import Watch
from ehr_ray.train.sharding import sharded
from ehr_ray.train.statistics import LABEL
from ehr_ray.train.task import family_of


@dataclass(frozen=True)
class Job:
    """Everything a worker needs, picklable."""

    experiment: Experiment
    prepared: Prepared
    run: Path
    progress: Path
    tracked: Tracked | None
    starts: Path | None = None
    """A benchmark's folder for notes of every start and step; see `start_log.py`."""
    pinned: bool = False
    """Whether each rank keeps to one core with all its threads, as a benchmark asks."""
    ranking: TrialRanking | None = None
    """What a search measures at each report, of a trial."""
    lease: Lease | None = None
    """The right to write to the run's URI, looked at before each report is stored."""


class RayBackend:
    """A rank of a Ray Train worker group."""

    def __init__(self, strategy: str = "ddp") -> None:
        self._strategy = strategy
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        if self.device.type == "cuda":  # a rank of several on a node computes on its own GPU
            torch.cuda.set_device(self.device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model on the device, of several ranks in DDP or divided among them."""
        if self._strategy == "fsdp" and self.world > 1:
            return sharded(model, self.device)
        options = {"gradient_as_bucket_view": True}  # gradients are not held twice
        return sent_once(ray.train.torch.prepare_model(model, parallel_strategy_kwargs=options))

    def all_sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks."""
        return self.begin_sum(values)()

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin a sum over ranks; what is returned waits for it, and returns it."""
        return begin_sum(values.to(self.device)) if self.world > 1 else lambda: values

    def report(self, metrics: dict[str, float]) -> None:
        """Report to Ray Train. Durable state is the run directory's, not Ray's."""
        ray.train.report(metrics)


def loader_of(experiment: Experiment, family: AnyFamily, prepared: Prepared) -> Loader:
    """Return the loader of an experiment over prepared blocks."""
    config = experiment.model

    def collate(rows: Sequence[Row]) -> Batch:
        batch = family.collate(rows, config)
        if experiment.task is not None:
            batch[LABEL] = torch.tensor([float(row[LABEL]) for row in rows])
        return batch

    return Loader(
        train=prepared.store("train"),
        tuning=prepared.store("tuning"),
        collate=collate,
        config=experiment.data,
        seed=experiment.seed,
        accumulate=experiment.train.accumulate,
        threads=experiment.data.collate_threads
        or max(1, int(experiment.cluster.cpus_per_worker / 2)),
    )


def check_share(job: Job, world: int) -> None:
    """Raise InputError unless every one of `world` workers would get a patient at every step."""
    experiment = job.experiment
    family = family_of(experiment)
    check_batches(family, experiment.model, loader_of(experiment, family, job.prepared), world)


def shares(experiment: Experiment, prepared: Prepared) -> float | tuple[float, ...] | None:
    """Return the shares of the classes in train where the loss is weighted by them, else None.

    Of a binary task it is the share of positive rows.
    """
    task = experiment.task
    if task is None or task.class_weight != "balanced":
        return None
    labels = prepared.store("train").column(LABEL)
    if not len(labels):
        return None
    if task.kind == "binary":
        return float(labels.mean())
    counts = np.bincount(labels.astype(np.int64), minlength=len(task.classes))
    return tuple((counts / len(labels)).tolist())


def train_here(job: Job, backend: Backend) -> Progress:
    """Train in this process; on rank 0 the run is claimed, tracked and shown."""
    divided = job.experiment.cluster.strategy == "fsdp" and backend.world > 1
    (return_freed_memory if divided else keep_freed_memory)()
    if job.pinned:
        keep_to_core(backend.rank)
    experiment = job.experiment
    family = family_of(experiment, shares(experiment, job.prepared))
    loader = loader_of(experiment, family, job.prepared)
    noted = job.starts and StartFile(job.starts, backend.rank, backend.world)
    if job.ranking is not None:
        drop_states(job.run, after=measured(job.run))
        backend.all_sum(torch.zeros(1))  # no rank reads a state that another one removes
    if backend.rank > 0:
        with numerics(experiment.train):
            return train(experiment, family, job.prepared.vocabulary, loader, backend, job.run)
    tracker, screen = Tracker(job.tracked), ProgressFile(job.progress)
    if screen.begun and (saved := saved_progress(job.run)):  # after a loss or a change of workers
        who = "1 worker goes" if backend.world == 1 else f"{backend.world} workers go"
        screen.lines([f"{job.run.name}: {who} on from step {saved.step}"])

    def on_report(row: dict[str, float]) -> None:
        tracker.report(row)
        screen.report(row, family.select.metric)
        if problem := sender.send():  # the other ranks wait for this one: go on
            screen.lines([f"not stored, tried again with this report: {problem}"])

    def on_step(step: int, total: int) -> None:
        if noted:
            noted.step(step)
        screen.step(step, total)

    # What a process that was lost had not told, or another trial had reported.
    tracker.retell(job.run, (HISTORY, MEASURES) if job.ranking else (HISTORY,))
    with (
        run_lock(job.run),
        numerics(experiment.train),
        sending(job.run, job.progress, job.lease) as sender,
    ):
        if job.ranking is not None:
            measure = job.ranking.bind(experiment, family, job.prepared.vocabulary, loader)
            # A measure that is stored is one of a state that is.
            backend = RankingBackend(backend, measure, job.run, tracker.metrics, sender.wait)
        watch = Watch(on_step, on_report, screen.lines)
        vocabulary = job.prepared.vocabulary
        progress = train(experiment, family, vocabulary, loader, backend, job.run, watch)
        sender.finish()
    if tracker.flush():  # told by who reads the run directory next
        untold(job.run)
    elif job.tracked is not None:
        (job.run / UNTOLD).unlink(missing_ok=True)
    return progress


def to_worker(job: Job) -> dict[str, Any]:
    """Return the configuration of the workers: a job, and its paths by names all nodes know."""
    blocks = {split: paths.named() for split, paths in job.prepared.blocks.items()}
    paths = {"run": canonical(job.run), "progress": canonical(job.progress), "blocks": blocks}
    return {"job": job, "paths": paths}


def from_worker(config: dict[str, Any]) -> Job:
    """Return the job with the paths of this node, where what it reads has been copied."""
    job: Job = config["job"]
    paths = config.get("paths")
    if paths is None:
        return job
    run = runs.fetch_run(paths["run"], missing_ok=True)
    blocks = fetched(paths["blocks"])
    if job.prepared.stream is not None:
        job.prepared.stream.check()
    # A state holds what came of these, so the first start alone reads them.
    if saved_progress(run) is None:
        for given in (job.experiment.init_from, getattr(job.experiment.model, "phrases", None)):
            if given is not None and is_uri(given):
                runs.fetch_run(given)
        if (table := getattr(job.experiment.model, "embedding_csv", None)) is not None:
            sync.fetch(table)
    return replace(
        job,
        run=run,
        progress=local(paths["progress"]),
        prepared=replace(job.prepared, blocks=blocks),
    )


def received(config: dict[str, Any], backend: Backend) -> Job:
    """Return this rank's job once every rank has its own: none writes to a copy before.

    A `UserError` or `RunError` of one rank is raised by all, as rank 0 alone is heard.
    `RuntimeError` where the copies of two ranks are of different states: a process that was thought
    dead wrote in between.
    """
    job, told = None, ("", "", 0)
    try:
        job = from_worker(config)
        if uri_of(job.run) is not None and (progress := saved_progress(job.run)):
            told = ("", "", progress.step)
    except (UserError, RunError) as error:
        told = (type(error).__name__, str(error), 0)
    by_rank = [told] * backend.world
    if backend.world > 1:
        dist.all_gather_object(by_rank, told)
    for kind, text, _ in by_rank:
        if kind:
            raise error_of_kind(kind, text)
    if len({step for *_, step in by_rank}) > 1:
        raise RuntimeError("the ranks have copies of different states; they begin again")
    assert job is not None
    return job


def train_worker(config: dict[str, Any]) -> dict[str, str]:
    """Run as a Ray Train worker; an error that is every rank's own is returned, not retried.

    Any other one is raised where ranks wait for each other: a failure ends them all, and `Patience`
    tells by its kind whether it is tried again.
    """
    cluster = config["job"].experiment.cluster
    pass_over_imports()
    torch.set_num_threads(max(1, int(cluster.cpus_per_worker)))
    # For libraries with threads of OpenMP that are loaded from now on.
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    backend = RayBackend(cluster.strategy)
    told = False
    try:
        job = received(config, backend)
        told = backend.world > 1
        train_here(job, backend)
    except (UserError, RunError) as error:
        if told:
            raise
        return {"kind": type(error).__name__, "error": str(error)}
    return {"kind": "", "error": ""}
