"""When each of many codes comes next: a piecewise-exponential head, and its exact likelihood.

B patients, M moments, K bins, C codes, D width, R rank. From a moment on, a code's hazard is
constant within each bin (Friedman 1982; over many codes Steinberg et al. 2023, MOTOR). A code that
does not come again is censored at the end of what the model was given of the record.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ehr_ray.nn.moment_heads import ENTRIES, RANK, chunks_of, sum_over

LIMIT = 10.0
"""Largest change of a log hazard from that of train: beyond, an exponential may overflow."""


class Truth(NamedTuple):
    """What came after M moments of B patients."""

    hours: Tensor
    """Until the code comes, or the record ends, float32 [B, M, C]."""
    event: Tensor
    """Whether it comes, bool [B, M, C]."""
    real: Tensor
    """Which moments there are, bool [B, M]."""


class TimeToEvent(nn.Module):
    """Log hazards: those of train for each bin and code, and a product of low rank beside them.

    Args:
        width: D of the states that it reads.
        codes: C.
        bins: hours at which a bin ends and the next one begins, ascending; K is one more.
    """

    edges: Tensor
    log_rate: Tensor

    def __init__(self, width: int, codes: int, bins: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("edges", torch.tensor((0.0, *bins)), persistent=False)
        self.register_buffer("log_rate", torch.zeros(len(bins) + 1, codes))
        self.by_bin = nn.Linear(width, (len(bins) + 1) * RANK)
        self.codes = nn.Parameter(0.1 * torch.randn(codes, RANK) / RANK**0.5)

    def forward(self, state: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Return sums over moments and codes of a state [B, M, D], each [].

        `time_to_event` is -log likelihood, `time_to_event_baseline` that of train's rates, and
        `answers` how many entries there are. Of many moments a chunk is made at a time, and made
        again for the gradient.
        """
        flat = (part.flatten(0, 1) for part in truth)
        chunks = chunks_of(ENTRIES // self.log_rate.numel(), state.flatten(0, 1), *flat)
        came, passed = zip(*(tallies(self.edges, *c[1:]) for c in chunks), strict=True)
        baseline = sum(passed) * self.log_rate.exp() - sum(came) * self.log_rate
        return {
            "time_to_event": sum_over(chunks, self._nats),
            "time_to_event_baseline": baseline.sum(),
            "answers": truth.real.sum().float() * len(self.codes),
        }

    def log_hazard(self, state: Tensor) -> Tensor:
        """Return log of events an hour, float32 [N, K, C], of a state [N, D]."""
        product = self.by_bin(state).unflatten(-1, (-1, RANK)) @ self.codes.T
        return self.log_rate + LIMIT * torch.tanh(product.float() / LIMIT)

    def _nats(self, state: Tensor, hours: Tensor, event: Tensor, real: Tensor) -> Tensor:
        nats = negative_log_likelihood(self.log_hazard(state), hours, event, self.edges)
        return (nats * real.unsqueeze(-1)).sum()

    @torch.no_grad()
    def fit(self, truths: Iterable[Truth]) -> None:
        """Set the rates to those of some patients.

        To each bin an hour at the code's rate over all bins is added, so that one that nobody
        reached has that; to all of them half an event in an hour.
        """
        came, passed = self.log_rate.new_zeros(2, *self.log_rate.shape, dtype=torch.float64)
        for truth in truths:
            flat = (part.flatten(0, 1) for part in truth)
            for total, one in zip((came, passed), tallies(self.edges, *flat), strict=True):
                total += one
        code = (came.sum(0) + 0.5) / (passed.sum(0) + 1)
        self.log_rate.copy_(((came + code) / (passed + 1)).log())


def time_in_bins(hours: Tensor, edges: Tensor) -> Tensor:
    """Return the hours [N, C] as hours spent in each bin, [N, K, C]; `edges` [K] are the starts."""
    width = torch.cat([edges.diff(), edges.new_full((1,), torch.inf)])
    spent = (hours.unsqueeze(1) - edges[:, None]).clamp(min=0)
    return torch.minimum(spent, width[:, None])


def negative_log_likelihood(
    log_hazard: Tensor, hours: Tensor, event: Tensor, edges: Tensor
) -> Tensor:
    """Return the hazard met less, with an event, the log hazard of its bin, float32 [N, C].

    `log_hazard` [N, K, C], `hours` and `event` [N, C]; a bin holds its end, not its start (`edges`
    [K]).
    """
    met = (time_in_bins(hours, edges) * log_hazard.exp()).sum(1)
    last = (torch.searchsorted(edges, hours) - 1).clamp(min=0)
    return met - log_hazard.gather(1, last.unsqueeze(1)).squeeze(1) * event


def tallies(edges: Tensor, hours: Tensor, event: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Return events and hours at risk by bin and code, float32 [K, C] each, of the `real` rows."""
    last = (torch.searchsorted(edges, hours) - 1).clamp(min=0)
    bins = torch.arange(len(edges), device=hours.device)
    came = (last.unsqueeze(1) == bins[:, None]) & (event & real.unsqueeze(-1)).unsqueeze(1)
    passed = time_in_bins(hours, edges) * real[:, None, None]
    return came.sum(0).float(), passed.sum(0)
