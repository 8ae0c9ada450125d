"""Discrete codes in place of a Gaussian latent (VQ-VAE, van den Oord et al. 2017).

The codebook is trained by its own loss, not by moving averages, so that it is the same on every
rank. Codes are compared by direction (Yu et al. 2022): few entries then go unused.
"""

from torch import Tensor, nn
from torch.nn import functional as F


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
        codes = (x.detach() @ entries.detach().T).argmax(-1)
        chosen = F.embedding(codes, entries)
        to_members = (chosen - x.detach()).square().sum((1, 2))
        to_codes = (chosen.detach() - x).square().sum((1, 2))
        return x + (chosen - x).detach(), codes, to_members, to_codes
