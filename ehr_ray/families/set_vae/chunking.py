"""Sets of one batch in chunks of like size: little padding, and memory that does not grow.

M sets, N tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ehr_ray.families.set_vae.config import MOST_SETS
from ehr_ray.family import Batch

GROUPS = 6
"""Chunks a batch is cut into at least: sets of 5 and of 40 tokens are not padded to each other."""
SMALLEST = 64
"""Fewer sets than this a chunk would cost more in overhead than their padding."""


@dataclass(frozen=True)
class Pieces:
    """Chunks of the sets of a batch, as the device and as the host know them."""

    indices: list[Tensor]
    """Indices of each chunk's sets, ascending by size."""
    widths: list[int]
    """Tokens of each chunk's largest set, 1 at least: tensors of width 0 help nobody."""
    num_sets: list[int]
    """Sets of each patient, [B]."""

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        return zip(self.indices, self.widths, strict=True)


def where(mask: Tensor, columns: Batch) -> Batch:
    """Return the entries of columns at which a mask is True: the host waits once for them all."""
    at = mask.nonzero(as_tuple=True)
    return {name: column[at] for name, column in columns.items()}


def by_size(batch: Batch, tokens: int, most: int = MOST_SETS) -> Pieces:
    """Return the sets, ascending by size, in chunks of about equal cost.

    A chunk holds `tokens` padded tokens and `most` sets at most, but one set at least. The
    host waits once for the sizes, however many sets and chunks there are.
    """
    sizes = batch["mask"].sum(1)
    order = torch.argsort(sizes, stable=True)
    told = torch.cat([sizes[order], batch["num_sets"]]).tolist()
    return _cut(order, told[: len(order)], told[len(order) :], tokens, most)


def split_by_size(
    batch: Batch, first: Tensor, tokens: int, most: int = MOST_SETS
) -> tuple[Pieces, Pieces]:
    """Return chunks of the sets of `first`, bool [M], and chunks of the others, waiting once."""
    sizes = batch["mask"].sum(1)
    order = torch.argsort(sizes + ~first * (batch["mask"].shape[1] + 1), stable=True)
    told = torch.cat([sizes[order], batch["num_sets"], first.sum().unsqueeze(0)]).tolist()
    count, num_sets = told[-1], told[len(order) : -1]
    return (
        _cut(order[:count], told[:count], num_sets, tokens, most),
        _cut(order[count:], told[count : len(order)], num_sets, tokens, most),
    )


def _cut(order: Tensor, sizes: list[int], num_sets: list[int], tokens: int, most: int) -> Pieces:
    """Return chunks of `order` [M], indices of sets that ascend by their `sizes` [M]."""
    if not sizes:  # nobody in the batch has a set of the kind wanted
        return Pieces([order], [1], num_sets)
    total = sum(sizes)
    groups = max(-(-total // tokens), min(GROUPS, -(-len(sizes) // SMALLEST)))
    ahead = np.maximum(sizes, 1).cumsum().astype(np.float32)
    shares = np.arange(1, groups, dtype=np.float32) * np.float32(total / groups)
    ends = [*np.searchsorted(ahead, shares).tolist(), len(sizes)]
    indices, widths, begin = [], [], 0
    for end in ends:
        rows = min(most, max(1, tokens // max(1, sizes[end - 1])))
        for start in range(begin, end, rows):
            stop = min(start + rows, end)
            indices.append(order[start:stop])
            widths.append(max(1, sizes[stop - 1]))
        begin = max(begin, end)
    return Pieces(indices, widths, num_sets)


def chosen(batch: Batch, index: Tensor) -> Batch:
    """Return the sets of `index`; what is kept of patients, whole, is not theirs."""
    patients = {name: batch[name] for name in ("num_sets", "subject_id")}
    return {
        name: values[index] for name, values in batch.items() if name not in patients
    } | patients


def chunk(batch: Batch, index: Tensor, width: int) -> Batch:
    """Return the sets of `index` padded to `width`, the size of the largest of them."""
    return {
        name: values[:, :width] if values.ndim == 2 else values
        for name, values in chosen(batch, index).items()
    }


def joined(parts: list[Tensor], indices: list[Tensor]) -> Tensor:
    """Return rows of chunks in the order the sets had, [M, ...]."""
    order = torch.cat(indices)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return torch.cat(parts)[inverse]


def joined_tokens(parts: list[Tensor], pieces: Pieces, like: Tensor) -> Tensor:
    """Return [m, width] of each chunk in the places of the batch, as `like` [M, N]; 0 elsewhere."""
    whole = parts[0].new_zeros(like.shape)
    for part, (index, width) in zip(parts, pieces, strict=True):
        whole[index, :width] = part[:, : like.shape[1]]
    return whole


def padded_tokens(batch: Batch, pieces: Pieces) -> Tensor:
    """Return how many tokens are computed in chunks, padding among them; float32, a scalar."""
    tokens = sum(len(index) * width for index, width in pieces)
    return torch.full((), float(tokens), device=batch["mask"].device)


def bounded(pieces: Pieces, function: Callable[..., Any], *args: Any, again: bool = False) -> Any:
    """Call a function, its activations recomputed in backward where there are many chunks.

    `again` recomputes those of few chunks too. What is drawn in it must be a function of its
    arguments: generators are not set back.
    """
    if not (again or len(pieces) > GROUPS) or not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
