"""What heads share that are asked, at moments of a record, for each of many codes.

Their answers are products of low rank, so that codes by the thousand cost a vector each, and are
made a chunk at a time.
"""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

RANK: Final = 32
"""Rank of what is said of a moment, over codes."""
ENTRIES = 1 << 24
"""Numbers that are made at a time: 64 MB."""
FIT_ROWS: Final = 2000
"""Patients of train whose statistics a head starts from."""

Chunks = list[tuple[Tensor, ...]]


def chunks_of(rows: int, *tensors: Tensor) -> Chunks:
    """Return tensors of one length as tuples of at most so many rows of each."""
    return [*zip(*(tensor.split(max(1, rows)) for tensor in tensors), strict=True)]


def sum_over(chunks: Chunks, function: Callable[..., Tensor]) -> Tensor:
    """Return the sum [] of what a function says of each chunk.

    Of many chunks each is made again for the gradient, so that one at a time is in memory.
    """
    again = len(chunks) > 1 and torch.is_grad_enabled()
    found = [
        checkpoint(function, *chunk, use_reentrant=False) if again else function(*chunk)
        for chunk in chunks
    ]
    return torch.stack(found).sum()


def gain(means: Mapping[str, float]) -> dict[str, float]:
    """Return what each mean term of a loss is below its baseline, `<term>_baseline`."""
    return {
        f"{name}_gain": means[f"{name}_baseline"] - mean
        for name, mean in means.items()
        if f"{name}_baseline" in means
    }
