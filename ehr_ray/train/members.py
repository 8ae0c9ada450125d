"""Several models of a task trained in one run (`train.seeds`), whose answers are averaged.

B patients, N members, M heads of each, K classes, W width of an embedding.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import AnyFamily, Batch


class Members(nn.Module):
    """Models of a task side by side. They see the same batches, and share nothing else."""

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)

    def forward(self, batch: Batch, seed: int | None) -> Tensor:
        """Return what all heads say, [B, N * M], of K classes [B, N * M, K].

        `seed` keys the perturbation of inputs, for each member another; None leaves them alone.
        """
        number = len(self.members)
        seeds = [None if seed is None else seed + 2 * i for i in range(number)]
        parts = [model(batch, own) for model, own in zip(self.members, seeds, strict=True)]
        said = torch.cat(parts, 1)
        if said.requires_grad:
            # The loss is the mean over members: each has the gradient of its own, as if alone.
            said.register_hook(lambda gradient: number * gradient)
        return said


def members_of(model: nn.Module) -> list[nn.Module]:
    """Return the models that are trained at once; one alone is itself. DDP may have wrapped it."""
    own: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    return [*own.members] if isinstance(own, Members) else [own]


def of_member(tensors: dict[str, Tensor], member: int, number: int) -> dict[str, Tensor]:
    """Return the tensors of a member, under its own names, of a checkpoint with `number` of them.

    Beyond the last one they begin anew, so that a checkpoint of one model has it for every member.
    """
    prefix = "" if number == 1 else f"members.{member % number}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def with_members(family: AnyFamily, number: int, answer: str) -> AnyFamily:
    """Return a family under a task head as `number` models, each trained as it would be alone.

    The loss is the mean of theirs, and each is clipped by its own norm. `predict` gives the mean
    of what they `answer`, their embeddings side by side [B, N * W], and all else, as `evaluation`
    does, of the first.
    """
    training, shown = family.training, family.evaluation
    counts = training.counts
    assert counts is not None

    def build(config: Any, vocabulary: Vocabulary) -> Members:
        return Members(family.build(config, vocabulary) for _ in range(number))

    def predict(model: nn.Module, batch: Batch) -> Batch:
        found = [family.predict(member, batch) for member in members_of(model)]
        return {
            **found[0],
            "embedding": torch.cat([one["embedding"] for one in found], 1),
            answer: torch.stack([one[answer] for one in found]).mean(0),
        }

    return replace(
        family,
        build=build,
        predict=predict,
        training=replace(
            training,
            counts=lambda *given: {name: number * n for name, n in counts(*given).items()},
            clipped=members_of,
        ),
        evaluation=replace(
            shown,
            latents=_of_first(shown.latents),
            reconstruct=_of_first(shown.reconstruct),
            outputs={name: _of_first(function) for name, function in shown.outputs.items()},
        ),
    )


def _of_first(function: Callable[[nn.Module, Batch], Batch] | None) -> Any:
    return None if function is None else lambda model, batch: function(members_of(model)[0], batch)
