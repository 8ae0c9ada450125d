"""Whether a device computes what the CPU does: terms of a loss, and gradients by part of a model.

Noise is a function of (seed, patient), so the same batch gives the same loss on both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch, Scheduled
from ehr_ray.nn.packed import padded
from ehr_ray.train.feed import move
from ehr_ray.train.loader import Loader
from ehr_ray.train.step import loss_terms, objective

COMPARED: Final = 16
"""Patients whose losses and gradients are computed in two ways."""
LATE: Final = 1_000_024
"""The step whose schedules hold: by it each weight that begins at 0 has come to its end. That of
the vitals VAE goes in cycles of 40 epochs, here steps, which is then at 24 of them."""
SMALL: Final = 1e-6
"""A part of a model with less than this share of the gradient is held against that share. All parts
of the tiny models have more (the least: 1.2e-6, of a prior of SeqSetVAE-PoE), and none of theirs is
rounding alone: on a CPU two threads were 2e-6 of a part off one, float64 6e-6 off float32."""
SEED: Final = 1


@dataclass(frozen=True)
class Computed:
    """What a model computed of a batch."""

    losses: Mapping[str, float]
    """The mean of each trained term."""
    gradients: Mapping[str, Tensor]
    """Of each parameter that has one, float32 on the CPU."""


def few(loader: Loader) -> Batch:
    """Return the batch that is compared: the first patients of train."""
    return loader.collate(loader.train.rows(range(min(COMPARED, len(loader.train)))))


def late(plan: Experiment) -> Scheduled:
    """Return the schedules of a run at a late step of it."""
    return {name: schedule.at(LATE, 1, LATE) for name, schedule in plan.schedules.items()}


def computed(
    plan: Experiment, family: AnyFamily, model: nn.Module, batch: Batch, device: str
) -> Computed:
    """Return losses and gradients of a batch on a device; the model has no gradient afterwards."""
    there = move(batch, torch.device(device))
    torch.manual_seed(plan.seed)
    terms = loss_terms(family, model, there, late(plan), SEED, plan.train.precision)
    objective(terms, {name: term.count.detach() for name, term in terms.items()}, 1).backward()
    losses = {
        name: float(term.sum.detach()) / max(float(term.count), 1.0)
        for name, term in terms.items()
        if term.coef
    }
    gradients = {
        name: parameter.grad.float().cpu()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return Computed(losses, gradients)


def losses_apart(found: Computed, wanted: Computed) -> float:
    """Return the largest relative difference of a term; not a number where a term is not."""
    apart = [abs(found.losses[n] - w) / max(abs(w), 1e-6) for n, w in wanted.losses.items()]
    return float(np.max(apart))


def gradients_apart(found: Computed, wanted: Computed) -> tuple[float, str]:
    """Return the largest relative difference of the gradient of a part, and that part's name.

    Parts are the modules whose own the parameters are: in the sum over a whole model an attention
    without a gradient would not be seen. A difference is the norm of that of two gradients over the
    norm of the one that is wanted. Not a number where either is not.
    """
    apart: dict[str, list[float]] = {}
    for name in wanted.gradients.keys() | found.gradients.keys():
        ours, theirs = (c.gradients.get(name) for c in (found, wanted))
        some = ours if ours is not None else theirs
        assert some is not None
        ours, theirs = (torch.zeros_like(some) if g is None else g for g in (ours, theirs))
        sums = apart.setdefault(name.rpartition(".")[0], [0.0, 0.0])
        sums[0] += float((ours - theirs).square().sum())
        sums[1] += float(theirs.square().sum())
    whole = sum(size for _, size in apart.values())
    names = sorted(apart)
    shares = [apart[n][0] / max(apart[n][1], SMALL**2 * whole, 1e-30) for n in names]
    worst = int(np.argmax(shares))  # the first that is not a number, if there is one
    return float(np.sqrt(shares[worst])), names[worst]


def packed_apart(
    plan: Experiment, family: AnyFamily, model: nn.Module, batch: Batch, device: str
) -> tuple[float, str] | None:
    """Return how far gradients of packed tokens are from those of padded ones, and of which part.

    None where the device has no kernel for packed ones.
    """
    found = computed(plan, family, model, batch, device)
    with padded() as spared:
        wanted = computed(plan, family, model, batch, device)
    return gradients_apart(found, wanted) if spared else None
