"""Running sums of loss terms: exact means over ranks and batches."""

import math

import torch
from torch import Tensor

from ehr_ray.family import Terms
from ehr_ray.train.backend import Backend

Metrics = dict[str, float]


class Sums:
    """Running sums and counts of terms; means over all ranks and batches since the last call."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._values: dict[str, Tensor] = {}
        self._coef: dict[str, float] = {}

    def add(self, terms: Terms) -> None:
        """Count one batch."""
        for name, term in terms.items():
            value = torch.stack([term.sum.detach().double(), term.count.detach().double()])
            self._values[name] = value + self._values.get(name, 0)
            self._coef[name] = term.coef

    def means(self, prefix: str) -> Metrics:
        """Return `<prefix>/<term>` and `<prefix>/objective` (at the latest coefficients); reset.

        A term that nothing was counted for is NaN and no part of the objective: 0 would be best.
        """
        names = sorted(self._values)
        if not names:
            return {}
        totals = self._backend.all_sum(torch.stack([self._values[n] for n in names])).tolist()
        counted = {n: count > 0 for n, (_, count) in zip(names, totals, strict=True)}
        means = {
            n: total / count if counted[n] else math.nan
            for n, (total, count) in zip(names, totals, strict=True)
        }
        parts = [self._coef[n] * means[n] for n in names if counted[n] and self._coef[n]]
        total = sum(parts) if parts else math.nan
        self._values = {}
        return {**{f"{prefix}/{n}": v for n, v in means.items()}, f"{prefix}/objective": total}
