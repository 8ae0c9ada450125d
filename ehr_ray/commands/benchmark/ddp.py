"""`benchmark --only ddp`: what two ranks of a machine spend on being two, by how it is done.

The same event transformer, beside a buffer as large as a table of phrases, takes steps on the same
patients: as DDP is by itself, without its broadcast of buffers, with gradients that lie in what is
sent, and with counts that are summed beside the forward pass, which is how it is trained.
"""

import json
import multiprocessing
import os
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.commands.benchmark.gpu_models import experiment
from ehr_ray.commands.benchmark.ranks import Group, GroupBackend, ended
from ehr_ray.errors import RunError
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.training.start_log import keep_to_core
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train.backend import sent_once
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import make_optimizer
from ehr_ray.train.step import OptimizerStep
from ehr_ray.train.task import family_of

Figures = dict[str, float | str]
BUFFER: Final = 31 * 10**6 // 4
"""Numbers of the buffer: 20,000 phrases of 384."""
BATCH: Final = 16
STEPS: Final = 10
ROUNDS: Final = 5
"""Of each way, in turn."""
SECONDS: Final = 1800.0
"""How long ranks may take: on a busy machine some minutes."""


@dataclass(frozen=True)
class Way:
    """How ranks are two: whether buffers are sent at each step, gradients copied, counts late."""

    buffers: bool = False
    copied: bool = False
    late: bool = False


WAYS: Final = {
    "torch's defaults": Way(buffers=True, copied=True, late=True),
    "buffers sent once": Way(copied=True, late=True),
    "and gradients not copied": Way(late=True),
    "and counts summed early, as trained": Way(),
}


def ddp_speed(
    cohort: Path,
    place: Path,
    *,
    steps: int = STEPS,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> Figures:
    """Return milliseconds of a step of rank 0 by the clock and by its CPU, medians over rounds.

    Raises RunError where a rank fails, or has not ended after `seconds`.
    """
    plan = experiment("event_transformer", "tiny", cohort, place, BATCH)
    with prepared(plan, family_of(plan), on_ray=False) as data:
        context = multiprocessing.get_context("spawn")
        given = (plan, data, place, steps, rounds)
        ranks = [context.Process(target=_rank, args=(*given, rank)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        if not ended(ranks, seconds):
            raise RunError(
                f"--only ddp: its two ranks did not end in {seconds:g} s, and were ended; run it "
                "again on a quieter machine"
            )
    if any(rank.exitcode for rank in ranks):
        raise RunError("--only ddp: a rank failed; its message stands above")
    found: dict[str, list[list[float]]] = json.loads((place / "ddp.json").read_text())
    figures: Figures = {}
    for name, times in found.items():
        wall, cpu = (1000 * statistics.median(each) for each in zip(*times, strict=True))
        figures |= {f"{name}, ms per step": wall, f"{name}, CPU ms per step": cpu}
    return figures


def _rank(
    plan: Experiment, data: Prepared, place: Path, steps: int, rounds: int, rank: int
) -> None:
    keep_to_core(rank)
    torch.set_num_threads(1)
    meeting = f"file://{place}/ddp-meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    takers = {name: _taker(plan, data, way, rank) for name, way in WAYS.items()}
    family = family_of(plan)
    (batch,) = next(iter(loader_of(plan, family, data).train_steps(0, 0, rank, 2)))
    found: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    for number in range(1 + rounds):
        for name, take in takers.items():
            dist.barrier()
            began, spent = time.perf_counter(), time.process_time()
            for step in range(steps):
                take([batch], {}, step)
            wall, cpu = time.perf_counter() - began, time.process_time() - spent
            if number:  # the first round touches memory
                found[name].append([wall / steps, cpu / steps])
    if rank == 0:
        (place / "ddp.json").write_text(json.dumps(found))
    dist.barrier()
    # The end of a gloo group waits, with Python's lock, for threads that may want this lock.
    os._exit(0)


def _taker(plan: Experiment, data: Prepared, way: Way, rank: int) -> OptimizerStep:
    """Return what takes steps that way, of a model that all ways begin with."""
    family, backend = family_of(plan), GroupBackend(rank, Group("gloo", 2, "cpu"))
    torch.manual_seed(plan.seed)
    model = family.build(plan.model, data.vocabulary).train()
    model.register_buffer("beside", torch.zeros(BUFFER))
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=not way.copied)
    if way.late:
        family = replace(family, training=replace(family.training, counts=None))
    optimizer = make_optimizer(model, plan.train)
    whole = wrapped if way.buffers else sent_once(wrapped)
    return OptimizerStep(plan, family, whole, optimizer, backend, Sums(backend))
