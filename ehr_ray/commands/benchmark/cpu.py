"""`benchmark --only cpu`: how near each family's training step comes to what one core can do.

A step at published size, in float32 on one thread, is taken several times on the same batch, and
between them a product of square matrices: the best of the one is held against the best of the
other, in CPU time, so that what else runs on the machine changes the share little.
"""

import os
import time
from pathlib import Path
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

from ehr_ray.commands.benchmark.model import Trainer, flops_of, matrix_rate, ready
from ehr_ray.commands.benchmark.peers.published_steps import PATIENTS, PUBLISHED, plan
from ehr_ray.commands.benchmark.peers.timing import Figures
from ehr_ray.commands.ingest import ingest
from ehr_ray.config.yaml_files import override
from ehr_ray.experiment import Experiment, parse
from ehr_ray.family import Batch

STEPS: Final = 5
"""Steps of which the fastest counts; one goes before them."""
ENOUGH: Final = 0.6
"""Share of the product below which it is told what takes the time."""
OPERATORS: Final = 3
"""How many of them are told."""


def cpu_speed(place: Path) -> Figures:
    """Return GFLOP a step, GFLOP per CPU second and the share of the product's, of each program.

    Below `ENOUGH` of it, also the operators with most CPU time of their own.
    """
    figures: Figures = {}
    place = place / "cpu"
    for name, peer in PUBLISHED.items():
        cohort = place / peer.source
        if not cohort.exists():
            ingest(peer.source, None, cohort, options={"patients": PATIENTS}, cpus=1)
        told = override(plan(peer, cohort, place), {"train.precision": "float32"})
        figures |= {f"{name}, {key}": value for key, value in _utilisation(parse(told)).items()}
    return figures


def _utilisation(experiment: Experiment) -> Figures:
    with ready(experiment) as trainer:
        batches = trainer.batches()
        micro = next(batches)
        batches.close()
        trainer.step(micro)
        peaks, spent = [], []
        for _ in range(STEPS):
            peaks.append(matrix_rate(torch.float32))
            started = time.thread_time()
            trainer.step(micro)
            spent.append(time.thread_time() - started)
        floats = flops_of(trainer, micro)
        rate = floats / min(spent)
        share = rate / max(peaks)
        figures: Figures = {
            "GFLOP a step": floats / 1e9,
            "GFLOP per CPU second": rate / 1e9,
            "share of a matrix product's": share,
        }
        if share < ENOUGH:
            figures["most CPU time"] = _operators(trainer, micro)
        return figures


def _operators(trainer: Trainer, micro: list[Batch]) -> str:
    """Return the operators with most CPU time of their own in a step, with their shares of it."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler tells of itself on the screen
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        trainer.step(micro)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return ", ".join(
        f"{event.key.removeprefix('aten::')} {event.self_cpu_time_total / total:.0%}"
        for event in events[:OPERATORS]
    )
