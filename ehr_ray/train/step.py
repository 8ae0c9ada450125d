"""One optimizer step: losses of the micro-batches, exact means over ranks, clipping, the update."""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ehr_ray.errors import RunError
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch, Scheduled, Terms
from ehr_ray.train.backend import Backend
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import drop_held


@dataclass(frozen=True, eq=False)
class OptimizerStep:
    """Takes the steps of a run.

    Args:
        experiment: the run's; its `train` section has clipping and precision.
        family: whose loss is minimised.
        model: as the backend wrapped it, so that gradients are averaged over ranks.
        optimizer: of the model's parameters.
        backend: this rank among the others.
        sums: what the terms of each batch are added to.
    """

    experiment: Experiment
    family: AnyFamily
    model: nn.Module
    optimizer: torch.optim.Optimizer
    backend: Backend
    sums: Sums

    def __call__(self, micro: list[Batch], scheduled: Scheduled, seed: int) -> float:
        """Take one step over this rank's micro-batches; return the norm of the gradient.

        `seed` keys the noise of the loss. Raises RunError where the gradient is not finite.
        """
        model, plan = self.model, self.experiment.train
        self.optimizer.zero_grad(set_to_none=True)
        micro = [move(batch, self.backend.device) for batch in micro]
        counts = self._counts(micro, scheduled, seed) if len(micro) > 1 else None
        losses = []
        for index, batch in enumerate(micro):
            # DDP averages gradients in the last backward pass alone, once a step.
            last = index == len(micro) - 1
            no_sync = getattr(model, "no_sync", contextlib.nullcontext)
            with contextlib.nullcontext() if last else no_sync():
                terms = loss_terms(self.family, model, batch, scheduled, seed, plan.precision)
                if counts is None:
                    counts = self.backend.all_sum(_stacked_counts(terms))
                objective(terms, counts, self.backend.world).backward()
            self.sums.add(terms)
            losses.append({name: term.sum.detach() for name, term in terms.items()})
        drop_held(self.optimizer)
        if self.family.training.held:
            for parameter in self.family.training.held(getattr(model, "module", model), scheduled):
                parameter.grad = None
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, plan.clip or float("inf"))
        if not torch.isfinite(norm):
            raise RunError(self._not_finite(losses, scheduled))
        self.optimizer.step()
        return float(norm)

    def _counts(self, micro: list[Batch], scheduled: Scheduled, seed: int) -> Tensor:
        """Return the count of each term over the micro-batches of every rank.

        A term is divided by its count over the whole step, so counts come before gradients. The
        generator is forked: both passes then have the same draws, hence the same counts.
        """
        precision = self.experiment.train.precision
        with torch.no_grad(), torch.random.fork_rng():
            parts = [
                loss_terms(self.family, self.model, batch, scheduled, seed, precision)
                for batch in micro
            ]
        return self.backend.all_sum(torch.stack([_stacked_counts(t) for t in parts]).sum(0))

    def _not_finite(self, losses: list[dict[str, Tensor]], scheduled: Scheduled) -> str:
        """Return the message of a step whose gradient is not finite, with the terms at fault."""
        at_fault = dict.fromkeys(n for part in losses for n, v in part.items() if not v.isfinite())
        values = ", ".join(f"{name} {value:.4g}" for name, value in scheduled.items())
        return (
            f"{self.experiment.name}: {', '.join(at_fault) or 'gradient'} is not finite with "
            f"{values or 'no schedule'}; lower train.lr, or set train.clip"
        )


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
    family: AnyFamily,
    model: nn.Module,
    batch: Batch,
    scheduled: Scheduled,
    seed: int,
    precision: str,
) -> Terms:
    """Return the family's terms of a batch, under autocast where `precision` is `bf16`."""
    with autocast(next(iter(batch.values())).device.type, precision):
        return family.loss(model, batch, scheduled, seed)


def autocast(device: str, precision: str) -> torch.autocast:
    """Return the autocast of a precision."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def _stacked_counts(terms: Terms) -> Tensor:
    return torch.stack([term.count.detach().double() for term in terms.values()])
