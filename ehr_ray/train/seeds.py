"""Seeds and schedule values of a step: pure functions of (seed, step)."""

import torch

from ehr_ray.experiment import Experiment

MIX = 0x9E3779B97F4A7C15
"""The golden-ratio multiplier of splitmix64: spreads neighbouring steps over the seeds."""


def knobs_at(experiment: Experiment, step: int, steps_per_epoch: int) -> dict[str, float]:
    """Return every schedule's value at a step, and the step's noise seed."""
    values = {n: s.at(step, steps_per_epoch) for n, s in experiment.schedules.items()}
    return {**values, "noise_seed": noise_seed(experiment.seed, step)}


def noise_seed(seed: int, step: int) -> int:
    """Return a 48-bit seed of a step's noise: the same on all ranks, never evaluation's (0)."""
    return ((seed * 0x100000001B3 + step + 1) * MIX % (1 << 64) >> 16) | 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step: ranks differ, and a resumed run repeats."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4096 + rank) * MIX % (1 << 63))
