"""Numbers of a table as inputs of a network: logarithms of skewed ones, standardised, or missing.

B rows, F numbers.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

LIMIT = 4.0
"""Standard deviations an input is told at most."""
HUGE = 1e30
"""What a number is bounded by before: infinity times 0 is no number."""
RARE = 0.005
"""Share of the rows of train below which a number, or its being missing, is not told."""
SKEWED = 1.0
"""Skewness above which a number that is never negative is told by its logarithm."""


class TabularInputs(nn.Module):
    """[B, F] to [B, F, 2]: a number standardised as in train, 0 if missing; and whether it is.

    A skewed number that is never negative becomes log(x + shift) before, where the shift is half of
    what a twentieth of its positive values is below: a logarithm of any unit, which bears a zero.
    Numbers that train never saw or that never differ there are 0 for everybody, and numbers that
    are missing together say so once.
    """

    logged: Tensor
    shift: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, num_numbers: int) -> None:
        super().__init__()
        self.register_buffer("logged", torch.zeros(num_numbers, dtype=torch.bool))
        self.register_buffer("shift", torch.ones(num_numbers))
        self.register_buffer("center", torch.zeros(num_numbers, 2))
        self.register_buffer("scale", torch.zeros(num_numbers, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised inputs, float [B, F, 2]."""
        missing = x.isnan()
        x = x.clamp(-HUGE, HUGE)
        number = torch.where(self.logged, (x.clamp(min=0) + self.shift).log(), x)
        number = (number - self.center[:, 0]) * self.scale[:, 0]
        absent = (missing.to(x.dtype) - self.center[:, 1]) * self.scale[:, 1]
        return torch.stack([number.masked_fill(missing, 0), absent], -1).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def fit(self, x: NDArray[np.floating]) -> None:
        """Take logarithms and scales from rows of train, float [N, F]."""
        x = np.clip(np.asarray(x, dtype=np.float64), -HUGE, HUGE)
        missing = np.isnan(x)
        share = missing.mean(0)
        _, first = np.unique(missing, axis=1, return_index=True)
        told = np.isin(np.arange(x.shape[1]), first) & (share > RARE) & (share < 1 - RARE)
        # An indicator is centred, not scaled: a rare one would be told as large.
        self.center[:, 1] = torch.from_numpy(share)
        self.scale[:, 1] = torch.from_numpy(told.astype(np.float64))
        for column in range(x.shape[1]):
            given = x[~missing[:, column], column]
            if len(given) < max(2, RARE * len(x)) or given.min() == given.max():
                continue
            if given.min() >= 0 and _skewness(given) > SKEWED:
                shift = np.quantile(given[given > 0], 0.05) / 2
                self.logged[column], self.shift[column] = True, float(shift)
                given = np.log(given + shift)
            self.center[column, 0] = float(given.mean())
            self.scale[column, 0] = 1 / float(given.std())


def _skewness(x: NDArray[np.float64]) -> float:
    return float((((x - x.mean()) / x.std()) ** 3).mean())
