"""Seeds and scheduled values of a step: functions of (seed, step), so that runs repeat."""

import torch

from ehr_ray.events.mixing import GOLDEN
from ehr_ray.experiment import Experiment

FNV_PRIME = 0x100000001B3
"""The 64-bit FNV prime: steps of runs with neighbouring seeds do not meet."""
MAX_RANKS = 4096
"""Ranks that get seeds of their own at a step."""


def scheduled_at(experiment: Experiment, step: int, steps_per_epoch: int) -> dict[str, float]:
    """Return the value of every schedule at a step, by name."""
    plan = experiment.train
    total = plan.max_epochs * steps_per_epoch
    total = min(total, plan.max_steps or total)
    return {n: s.at(step, steps_per_epoch, total) for n, s in experiment.schedules.items()}


def noise_seed(seed: int, step: int) -> int:
    """Return a 48-bit seed of a step's noise: the same on all ranks, never validation's (0)."""
    return ((seed * FNV_PRIME + step + 1) * GOLDEN % (1 << 64) >> 16) | 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step: ranks differ, and a resumed run repeats."""
    torch.manual_seed(((seed * 1_000_003 + step) * MAX_RANKS + rank) * GOLDEN % (1 << 63))
