"""Discrete codes in place of a Gaussian latent (VQ-VAE, van den Oord et al. 2017).

The codebook is trained by its own loss, not by moving averages, so that it is the same on every
rank. Codes are compared by direction (Yu et al. 2022): few entries then go unused.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

MIN_PERPLEXITY = 0.1
"""Share of the codebook that codes must be spread over; below it the codebook has collapsed."""


class Quantiser(nn.Module):
    """Groups of numbers to the nearest of K directions; B patients, G groups, D dimensions."""

    def __init__(self, codebook: int, width: int) -> None:
        super().__init__()
        self.codebook = nn.Embedding(codebook, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return for x [B, G, D]: directions [B, G, D], codes [B, G], and two errors, [B] each.

        The first error moves codes to their members, the second members to their codes; the
        directions let the gradient through to x (straight-through).
        """
        entries = F.normalize(self.codebook.weight, dim=-1)
        x = F.normalize(x, dim=-1)
        # A product in bf16 takes the second nearest for the nearest of some codes in a hundred.
        with torch.autocast(x.device.type, enabled=False):
            codes = (x.detach().float() @ entries.detach().float().T).argmax(-1)
        chosen = F.embedding(codes, entries)
        to_members = (chosen - x.detach()).square().sum((1, 2))
        to_codes = (chosen.detach() - x).square().sum((1, 2))
        return x + (chosen - x).detach(), codes, to_members, to_codes


def perplexity(codes: NDArray[np.integer], size: int) -> tuple[float, int]:
    """Return exp(entropy of use), 1 to `size`, and how many of the entries are used at all."""
    share = np.bincount(codes.ravel(), minlength=size) / max(codes.size, 1)
    used = share[share > 0]
    return float(np.exp(-(used * np.log(used)).sum())), len(used)


def code_warnings(reports: Sequence[Mapping[str, float]]) -> list[str]:
    """Return a line if the codes of the last report hardly use the codebook; [] otherwise."""
    last = reports[-1] if reports else {}
    share = last.get("code_perplexity_share")
    if share is None or share >= MIN_PERPLEXITY:
        return []
    return [
        f"collapsed codebook: perplexity {last['code_perplexity']:.1f} is {share:.1%} of its "
        f"entries, {last['codes_used']:.0f} used; try a smaller model.codebook"
    ]
