"""Sets of one batch in chunks of like size: little padding, and memory that does not grow.

M sets, N tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ehr_ray.family import Batch

GROUPS = 6
"""Chunks a batch is cut into at least: sets of 5 and of 40 tokens are not padded to each other."""
SMALLEST = 64
"""Fewer sets than this a chunk would cost more in overhead than their padding."""


def by_size(batch: Batch, tokens: int) -> list[Tensor]:
    """Return the indices of the sets, ascending by size, in chunks of about equal cost.

    A chunk holds `tokens` padded tokens at most, but one set at least.
    """
    sizes = batch["mask"].sum(1)
    order = torch.argsort(sizes, stable=True)
    if not len(order):  # nobody in the batch has a set of the kind wanted
        return [order]
    total = int(sizes.sum())
    groups = max(-(-total // tokens), min(GROUPS, -(-len(order) // SMALLEST)))
    ahead = sizes[order].clamp(min=1).cumsum(0)
    shares = torch.arange(1, groups, device=ahead.device) * (total / groups)
    cuts = torch.searchsorted(ahead, shares)
    parts = [part for part in torch.tensor_split(order, cuts.tolist()) if len(part)]
    return [piece for part in parts for piece in _split(part, sizes, tokens)]


def chosen(batch: Batch, index: Tensor) -> Batch:
    """Return the sets of `index` (or a mask); what is kept of patients, whole, is not theirs."""
    patients = {name: batch[name] for name in ("num_sets", "subject_id")}
    return {
        name: values[index] for name, values in batch.items() if name not in patients
    } | patients


def chunk(batch: Batch, index: Tensor) -> Batch:
    """Return the sets of `index` padded to the largest of them."""
    part = chosen(batch, index)
    width = _widest(part["mask"].sum(1))
    return {
        name: values[:, :width] if values.ndim == 2 else values for name, values in part.items()
    }


def joined(parts: list[Tensor], indices: list[Tensor]) -> Tensor:
    """Return rows of chunks in the order the sets had, [M, ...]."""
    order = torch.cat(indices)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return torch.cat(parts)[inverse]


def padded_tokens(batch: Batch, pieces: list[Tensor]) -> Tensor:
    """Return how many tokens are computed in chunks, padding among them; float32, a scalar."""
    sizes = batch["mask"].sum(1)
    tokens = sum(len(piece) * _widest(sizes[piece]) for piece in pieces)
    return torch.tensor(float(tokens), device=sizes.device)


def bounded(pieces: int, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function, its activations recomputed in backward where there are many chunks."""
    if pieces <= GROUPS or not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False)


def _widest(sizes: Tensor) -> int:
    """Return the size of the largest set, 1 at least: tensors of width 0 help nobody."""
    return max(1, int(sizes.max())) if len(sizes) else 1


def _split(index: Tensor, sizes: Tensor, tokens: int) -> tuple[Tensor, ...]:
    rows = max(1, tokens // _widest(sizes[index]))
    return torch.split(index, rows)
