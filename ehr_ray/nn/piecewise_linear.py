"""Numbers as piecewise-linear encodings between their quantiles (Gorishniy et al. 2022, eq. 1).

B rows, F numbers, K pieces of each.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LIMIT = 6.0
"""Standard deviations an input is told at most."""
RARE = 0.02
"""Standard deviation of an input below which it is centred but not scaled up."""


class PiecewiseLinear(nn.Module):
    """[B, F] to [B, F, K + 1]: how far a number is through each piece, and whether it is missing.

    A piece is 0 below it, 1 above it and linear within; all are 0 of a missing number (NaN). Inputs
    are standardised as they are in train. A piece without width, between two equal quantiles, and
    every piece of a number that train never saw, is 0 for everybody.
    """

    low: Tensor
    width: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, num_numbers: int, pieces: int) -> None:
        super().__init__()
        shape = (num_numbers, pieces)
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("width", torch.zeros(shape))
        self.register_buffer("center", torch.zeros(num_numbers, pieces + 1))
        self.register_buffer("scale", torch.ones(num_numbers, pieces + 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised inputs, float [B, F, K + 1]."""
        return ((self._inputs(x) - self.center) / self.scale).clamp(-LIMIT, LIMIT)

    def _inputs(self, x: Tensor) -> Tensor:
        missing = x.isnan().unsqueeze(-1)
        wide = self.width > 0
        share = (x.nan_to_num(0.0).unsqueeze(-1) - self.low) / torch.where(wide, self.width, 1.0)
        share = share.clamp(0, 1) * (wide & ~missing)
        return torch.cat([share, missing.to(share.dtype)], -1)

    @torch.no_grad()
    def fit(self, x: NDArray[np.floating]) -> None:
        """Take the quantiles and the scale of the inputs from rows of train, float [N, F]."""
        pieces = self.low.shape[1]
        edges = np.zeros((x.shape[1], pieces + 1))
        for column in range(x.shape[1]):
            given = x[:, column][~np.isnan(x[:, column])]
            if given.size:
                edges[column] = np.quantile(given, np.linspace(0, 1, pieces + 1))
        self.low.copy_(torch.from_numpy(edges[:, :-1]))
        self.width.copy_(torch.from_numpy(np.diff(edges, axis=1)))
        total, squares = torch.zeros_like(self.center).double(), 0.0
        for part in torch.from_numpy(np.asarray(x, np.float32)).to(self.low.device).split(512):
            inputs = self._inputs(part).double()
            total, squares = total + inputs.sum(0), squares + inputs.square().sum(0)
        mean = total / len(x)
        std = (squares / len(x) - mean.square()).clamp(min=0).sqrt()
        self.center.copy_(mean)
        self.scale.copy_(torch.where(std < RARE, 1.0, std))
