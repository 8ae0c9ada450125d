"""The focal loss (Lin et al. 2017, eq. 4) on cross-entropies."""

import torch
from torch import Tensor

SUREST = 1e-6
"""Smallest 1 - p: below it the gradient of a power below 1 would be infinite times zero."""


def focal(cross_entropy: Tensor, gamma: float) -> Tensor:
    """Return `(1 - p)^gamma` times each row's cross-entropy -log p, of any shape.

    Its gradient is finite for every gamma of 0 or more, also where p rounds to 1.
    """
    missed = -torch.expm1(-cross_entropy)
    return missed.clamp(min=SUREST) ** gamma * cross_entropy
