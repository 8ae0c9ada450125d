"""One optimizer step."""

import contextlib

import torch
from torch import Tensor, nn

from ehr_ray.errors import RunError
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch, Knobs, Terms
from ehr_ray.train.backend import Backend
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import drop_held


def optimise(
    family: AnyFamily,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro: list[Batch],
    knobs: Knobs,
    experiment: Experiment,
    backend: Backend,
    sums: "Sums",
) -> float:
    """Take one optimizer step over micro-batches of every rank; return the gradient's norm."""
    plan = experiment.train
    optimizer.zero_grad(set_to_none=True)
    micro = [move(batch, backend.device) for batch in micro]
    counts, losses = None, []
    if len(micro) > 1:
        # Each term is divided by its count over the whole step, so counts come before gradients.
        # Forking the generator gives both passes the same draws, hence the same counts.
        with torch.no_grad(), torch.random.fork_rng():
            parts = [loss_terms(family, model, batch, knobs, plan.precision) for batch in micro]
        counts = torch.stack([_counts(terms) for terms in parts]).sum(0)
        counts = backend.all_sum(counts)
    for index, batch in enumerate(micro):
        last = index == len(micro) - 1
        no_sync = getattr(model, "no_sync", contextlib.nullcontext)
        with contextlib.nullcontext() if last else no_sync():
            terms = loss_terms(family, model, batch, knobs, plan.precision)
            if counts is None:
                counts = backend.all_sum(_counts(terms))
            objective(terms, counts, backend.world).backward()
        sums.add(terms)
        losses.append({name: term.sum.detach() for name, term in terms.items()})
    drop_held(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, plan.clip or float("inf"))
    if not torch.isfinite(norm):
        bad = {n: 0 for part in losses for n, v in part.items() if not v.isfinite()} or ["gradient"]
        raise RunError(
            f"{experiment.name}: {', '.join(bad)} is not finite with {_told(knobs)}; "
            "lower train.lr, or set train.clip"
        )
    optimizer.step()
    return float(norm)


def objective(terms: Terms, counts: Tensor, world: int) -> Tensor:
    """Return `world * sum_i coef_i * sum_i / count_i`: DDP's mean over ranks makes it exact."""
    parts = [
        term.coef * term.sum / count.clamp(min=1e-12)
        for term, count in zip(terms.values(), counts, strict=True)
        if term.coef
    ]
    return world * torch.stack(parts).sum()


def move(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    if device.type == "cpu":
        return batch
    return {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}


def loss_terms(
    family: AnyFamily, model: nn.Module, batch: Batch, knobs: Knobs, precision: str
) -> Terms:
    """Return the family's terms of a batch, under autocast where asked."""
    with autocast(next(iter(batch.values())).device.type, precision):
        return family.loss(model, batch, knobs)


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the autocast of a precision."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def _told(knobs: Knobs) -> str:
    return ", ".join(f"{n} {v:.4g}" for n, v in knobs.items() if n != "noise_seed") or "no schedule"


def _counts(terms: Terms) -> Tensor:
    return torch.stack([term.count.detach().double() for term in terms.values()])
