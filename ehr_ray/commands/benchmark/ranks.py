"""Trainings in processes of their own, for `benchmark --only gpu`: ranks, and one that is killed.

They are ranks of a process group without Ray, so that what is measured is the device's.
"""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.errors import RunError
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.prepared import Prepared
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train import history
from ehr_ray.train.backend import begin_sum, sent_once
from ehr_ray.train.checkpoint import WEIGHTS
from ehr_ray.train.loop import train
from ehr_ray.train.numerics import numerics
from ehr_ray.train.report import Watch
from ehr_ray.train.sharding import sharded
from ehr_ray.train.task import family_of

START: Final = "spawn"
"""How a rank starts: a forked child of a process that has used CUDA, or autograd's threads, cannot
go on."""
KILLED = 9
FIRST = "first-step"
"""The first step that was taken since the last start, in its run's folder."""
SECONDS = 60
"""How long a rank waits for the others."""
FAULT = "fault.txt"
"""What a rank that could not go on said, in its run's folder."""


@dataclass(frozen=True)
class Group:
    """Ranks of one training: `world` of them by `backend` on `device`; `kill` ends rank 0 there.

    `strategy` as of `cluster.strategy`.
    """

    backend: str
    world: int
    device: str
    kill: int | None = None
    strategy: str = "ddp"


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    weights: Mapping[str, Tensor]
    norms: Sequence[float]
    """Of its gradients before they are clipped, in order. Neither clipping nor Adam lets weights
    tell that all gradients are as many times too large: summed over ranks, where they should be
    averaged."""


class GroupBackend:
    """A rank of a process group; several may share one GPU, where gloo carries their sums."""

    def __init__(self, rank: int, group: Group) -> None:
        self.rank, self.world, self.device = rank, group.world, torch.device(group.device)
        self._strategy = group.strategy

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model on the device, whole or divided, its gradients averaged over ranks."""
        there = model.to(self.device)
        if self._strategy == "fsdp":
            return sharded(there, self.device)
        return sent_once(DistributedDataParallel(there, gradient_as_bucket_view=True))

    def all_sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks."""
        return self.begin_sum(values)()

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin a sum over ranks; what is returned waits for it, and returns it."""
        return begin_sum(values.to(self.device))

    def report(self, metrics: dict[str, float]) -> None:
        """Do nothing: the run directory has it all."""


def run_group(
    experiment: Experiment, data: Prepared, run: Path, group: Group, seconds: float = 300.0
) -> int | None:
    """Train with the ranks of a group; return the first step they took, None without one.

    RunError unless they end in time as they are told to.
    """
    run.mkdir(parents=True, exist_ok=True)
    first = run / FIRST
    first.unlink(missing_ok=True)
    meeting = run / f".meeting-{group.backend}-{group.world}-{group.strategy}-{group.kill}"
    context = multiprocessing.get_context(START)
    ranks = [
        context.Process(target=_rank, args=(experiment, data, run, meeting, group, rank))
        for rank in range(group.world)
    ]
    for rank in ranks:
        rank.start()
    late = not ended(ranks, seconds)
    wanted = 0 if group.kill is None else KILLED
    if late or ranks[0].exitcode != wanted:
        fault = run / FAULT
        how = f"did not end in {seconds:.0f} s" if late else f"exit code {ranks[0].exitcode}"
        said = fault.read_text() if fault.is_file() else "their message stands above"
        raise RunError(
            f"{run.name}: {group.world} ranks by {group.backend} on {group.device}: {how}: {said}"
        )
    return int(first.read_text()) if first.is_file() else None


def ended(ranks: Sequence[BaseProcess], seconds: float) -> bool:
    """Wait for ranks that have been started; False where some had to be ended after so long."""
    until = time.monotonic() + seconds
    for rank in ranks:
        rank.join(max(0.0, until - time.monotonic()))
    late = [rank for rank in ranks if rank.is_alive()]
    for rank in late:
        rank.kill()
        rank.join()
    return not late


def outcome(run: Path) -> Outcome:
    """Return how a run ended, by its last state and its reports."""
    weights = load_file(max((run / "state").glob("[0-9]*")) / WEIGHTS)
    return Outcome(weights, history.read(run)["grad_norm"].tolist())


def farthest(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any two weights; not a number where one is none.

    Biases of keys have no gradient but rounding, which Adam makes as large as any other: they, and
    what lies beside them, are passed over.
    """
    names = [name for name in ours if not name.endswith("query_key_value.bias")]
    return float(np.max([float((ours[name] - theirs[name]).abs().max()) for name in names]))


def norms_apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference of two norms; infinite where there are not as many."""
    if len(ours) != len(theirs):
        return float("inf")
    return float(np.max(np.abs(np.divide(ours, theirs) - 1.0)))


def _rank(
    experiment: Experiment, data: Prepared, run: Path, meeting: Path, group: Group, rank: int
) -> None:
    # Whether it fails or not, a rank ends here: the end of a gloo group waits, with Python's lock,
    # for threads that may want this lock.
    try:
        _train_rank(experiment, data, run, meeting, group, rank)
    except BaseException as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        (run / FAULT).write_text(f"{type(error).__name__}: {lines[0]}")
        os._exit(1)
    os._exit(0)


def _train_rank(
    experiment: Experiment, data: Prepared, run: Path, meeting: Path, group: Group, rank: int
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        group.backend,
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=group.world,
        timeout=timedelta(seconds=SECONDS),
    )
    family = family_of(experiment)
    loader = loader_of(experiment, family, data)

    def on_step(step: int, _total: int) -> None:
        if not (run / FIRST).exists():
            (run / FIRST).write_text(str(step))
        if step == group.kill:
            os._exit(KILLED)

    backend = GroupBackend(rank, group)
    with numerics(experiment.train):
        train(experiment, family, data.vocabulary, loader, backend, run, Watch(on_step))
    dist.barrier()
