"""What a task head needs before its first step: the scale of its input, and what it reaches."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import nn

from ehr_ray.family import AnyFamily, Batch
from ehr_ray.train.backend import Backend
from ehr_ray.train.task import TaskModel

BATCHES = 16
"""Batches whose representation is measured, on each rank."""


def begin_task(
    family: AnyFamily, model: nn.Module, batches: Iterator[Batch], backend: Backend, *, fresh: bool
) -> list[str]:
    """Standardise the heads' input (a fresh run only) and freeze what the task does not reach.

    A decoder, say, gets no gradient, and DDP would wait for it. Returns the names of the frozen.
    """
    assert isinstance(model, TaskModel)
    first = next(batches)
    if fresh:
        standardise(model, [first, *islice(batches, BATCHES - 1)], backend)
    knobs = {**dict.fromkeys(family.schedules, 0.0), "noise_seed": 1}
    with torch.random.fork_rng():
        for term in family.loss(model, first, knobs).values():
            term.sum.backward()
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    model.zero_grad(set_to_none=True)
    return unused


@torch.no_grad()
def standardise(model: TaskModel, batches: list[Batch], backend: Backend) -> None:
    """Measure mean and standard deviation of the representation over batches of every rank."""
    was = model.training
    model.eval()
    features = torch.cat([model.features(batch, None) for batch in batches]).double()
    model.train(was)
    ones = torch.ones(len(features), 1, dtype=torch.float64, device=features.device)
    sums = backend.all_sum(torch.cat([ones, features, features.square()], 1).sum(0))
    count, width = sums[0], features.shape[1]
    mean = sums[1 : width + 1] / count
    variance = (sums[width + 1 :] / count - mean.square()).clamp(min=0)
    model.center.copy_(mean)
    model.scale.copy_(torch.where(variance > 1e-8, variance, 1.0).sqrt())
