"""Which variables a set has, given its latent: what the decoder is told and so cannot judge.

M sets, N tokens, V variables, R reduced, W width, D latent (all levels).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Composition(nn.Module):
    """A Bernoulli for each variable of the vocabulary, by its direction and the latent."""

    def __init__(self, latent: int, reduced: int, width: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(latent, width), nn.GELU())
        self.variable = nn.Linear(reduced, width)
        self.base = nn.Linear(reduced, 1)  # how often there is one, whatever the latent

    def forward(self, latent: Tensor, directions: Tensor, code: Tensor, mask: Tensor) -> Tensor:
        """Return -log p(these variables and no others | latent) of each set, float32 [M].

        `latent` [M, D], `directions` [V, R]; `code` and `mask` [M, N], a code once in a set.
        """
        base, variable = self.base(directions).squeeze(1), self.variable(directions)
        logit = (self.hidden(latent) @ variable.T / variable.shape[1] ** 0.5 + base).float()
        present = torch.where(mask, logit.gather(1, code), 0.0).sum(1)
        return F.softplus(logit).sum(1) - present
