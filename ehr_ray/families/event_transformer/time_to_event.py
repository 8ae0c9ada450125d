"""When each of many codes comes next: a piecewise-exponential head, and its exact likelihood.

B patients, T tokens, M moments, K bins, C codes, D width, R rank. From a moment on, a code's hazard
is constant within each bin (Friedman 1982; over many codes Steinberg et al. 2023, MOTOR). A code
that does not come again is censored at the end of what the model was given of the record.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ehr_ray.events.follow_up import followed_codes
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.data import token_book
from ehr_ray.family import Axis, Batch
from ehr_ray.nn.noise import combine, uniform

MOMENTS = 64
"""Moments of a patient that are asked for at most, drawn anew in each epoch."""
RANK = 32
"""Rank of the log hazards of a moment, over codes."""
LIMIT = 10.0
"""Largest change of a log hazard from that of train: beyond, an exponential may overflow."""
ENTRIES = 1 << 24
"""Numbers that are made at a time: 64 MB."""
FIT_ROWS = 2000
"""Patients of train whose rates the head starts from."""
_FIT_PATIENTS = 64
_MOMENT = 23


class Truth(NamedTuple):
    """What came after M moments of B patients."""

    hours: Tensor
    """Until the code comes, or the record ends, float32 [B, M, C]; above 0 where `real`."""
    event: Tensor
    """Whether it comes, bool [B, M, C]."""
    real: Tensor
    """Which moments there are, bool [B, M]."""


class TimeToEvent(nn.Module):
    """Log hazards: those of train for each bin and code, and a product of low rank beside them."""

    def __init__(self, config: EventTransformerConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        chosen = followed_codes(config.time_to_event_codes, vocabulary)
        place = np.full(len(vocabulary) + 1, len(chosen))  # the last is -1: no code
        place[chosen] = np.arange(len(chosen))
        book = token_book(vocabulary, config.token_options)
        bins = len(config.time_to_event_bins) + 1
        slot = torch.from_numpy(place[book.begun[0]])
        edges = torch.tensor((0.0, *config.time_to_event_bins))
        self.register_buffer("slot", slot, persistent=False)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("log_rate", torch.zeros(bins, len(chosen)))
        self.by_bin = nn.Linear(config.model_dim, bins * RANK)
        self.codes = nn.Parameter(0.1 * torch.randn(len(chosen), RANK) / RANK**0.5)

    def forward(self, state: Tensor, truth: Truth) -> dict[str, Tensor]:
        """Return sums over moments and codes of a state [B, M, D], each [].

        `time_to_event` is -log likelihood, `time_to_event_baseline` that of train's rates, and
        `answers` how many entries there are. Of many moments a chunk is made at a time, and made
        again for the gradient.
        """
        hours, event, real = (t.flatten(0, 1) for t in truth)
        rows = max(1, ENTRIES // self.log_rate.numel())
        flat = state.flatten(0, 1)
        chunks = [*zip(*(t.split(rows) for t in (flat, hours, event, real)), strict=True)]
        again = len(chunks) > 1 and torch.is_grad_enabled()
        found = [
            checkpoint(self._nats, *chunk, use_reentrant=False) if again else self._nats(*chunk)
            for chunk in chunks
        ]
        came, passed = zip(*(tallies(self.edges, *c[1:]) for c in chunks), strict=True)
        baseline = sum(passed) * self.log_rate.exp() - sum(came) * self.log_rate
        return {
            "time_to_event": torch.stack(found).sum(),
            "time_to_event_baseline": baseline.sum(),
            "answers": real.sum().float() * len(self.codes),
        }

    def log_hazard(self, state: Tensor) -> Tensor:
        """Return log of events an hour, float32 [N, K, C], of a state [N, D]."""
        product = self.by_bin(state).unflatten(-1, (-1, RANK)) @ self.codes.T
        return self.log_rate + LIMIT * torch.tanh(product.float() / LIMIT)

    def _nats(self, state: Tensor, hours: Tensor, event: Tensor, real: Tensor) -> Tensor:
        nats = negative_log_likelihood(self.log_hazard(state), hours, event, self.edges)
        return (nats * real.unsqueeze(-1)).sum()

    def truth(self, batch: Batch, index: Tensor, real: Tensor) -> Truth:
        """Return what came after the moments of the tokens `index` [B, M]."""
        slot, codes = self.slot[batch["phrase"]], len(self.codes)
        step = max(1, ENTRIES // (4 * slot.numel()))  # they are 64 bits, and there are two
        parts = [
            next_times(slot - first, moments(batch), index, min(step, codes - first))
            for first in range(0, codes, step)
        ]
        came, until = torch.cat(parts, -1), record_end(batch)
        minute = moments(batch).gather(1, index)
        event = torch.isfinite(came) & real.unsqueeze(-1)
        hours = torch.where(event, came, until[:, None, None]) - minute.unsqueeze(-1)
        hours = torch.where(real.unsqueeze(-1), hours / 60, 1.0)
        return Truth(hours.float(), event, real)

    @torch.no_grad()
    def fit(self, batch: Batch) -> None:
        """Set the rates to those of the patients of a batch.

        To each bin an hour at the code's rate over all bins is added, so that one that nobody
        reached has that; to all of them half an event in an hour.
        """
        came, passed = self.log_rate.new_zeros(2, *self.log_rate.shape, dtype=torch.float64)
        for part in _parts(batch):
            index, real = asked_moments(part, 0)
            flat = (t.flatten(0, 1) for t in self.truth(part, index, real))
            for total, one in zip((came, passed), tallies(self.edges, *flat), strict=True):
                total += one
        code = (came.sum(0) + 0.5) / (passed.sum(0) + 1)
        self.log_rate.copy_(((came + code) / (passed + 1)).log())


def fit_rates(model: nn.Module, batch: Batch) -> None:
    """Fit the rates of a new model on patients of train; nothing without the head."""
    if hasattr(model, "time_to_event"):
        model.time_to_event.fit(model.window(batch, None))


def fit_rows(config: EventTransformerConfig) -> int:
    """Return how many rows of train `fit_rates` reads."""
    return FIT_ROWS if config.time_to_event_weight else 0


def code_axes(config: EventTransformerConfig, vocabulary: Vocabulary) -> dict[str, Axis]:
    """Return which code each row of the head is of."""
    if not config.time_to_event_weight:
        return {}
    chosen = followed_codes(config.time_to_event_codes, vocabulary)
    return {"time_to_event.codes": Axis(0, tuple(vocabulary.codes[i] for i in chosen))}


def moments(batch: Batch) -> Tensor:
    """Return the minute by which each token is known, float64 [B, T], ascending; padding: infinity.

    What has no time stands first, and with the first event.
    """
    minute = batch["minute"].masked_fill(~batch["mask"], torch.inf)
    return minute.flip(1).cummin(1).values.flip(1)


def record_end(batch: Batch) -> Tensor:
    """Return the minute of the last token, [B]; 0 of a patient without any."""
    mask = batch["mask"]
    last = batch["minute"].masked_fill(~mask, -torch.inf).amax(1)
    return torch.where(mask.any(1), last, 0.0)


def asked_moments(batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
    """Return the tokens whose states are asked, [B, M], and which of them there are, bool [B, M].

    The last token of a minute after which something comes; of more than `MOMENTS` a random share,
    a function of (seed, patient, place).
    """
    minute = moments(batch)
    place = torch.arange(minute.shape[1], device=minute.device)
    later = torch.cat([minute[:, 1:], torch.full_like(minute[:, :1], torch.inf)], 1)
    there = (later > minute) & torch.isfinite(later)
    draw = uniform(combine(batch["subject_id"], seed, _MOMENT).unsqueeze(1), place)
    drawn = draw.masked_fill(~there, -1.0).topk(min(MOMENTS, len(place)), 1)
    return drawn.indices, drawn.values >= 0


def next_times(slot: Tensor, minute: Tensor, index: Tensor, codes: int) -> Tensor:
    """Return the first minute strictly after each moment at which a code comes, [B, M, C].

    `slot` [B, T] is the code of each token, outside of 0 to C - 1 for none, `minute` [B, T] as of
    `moments`; infinity where it does not come.
    """
    length = minute.shape[1]
    place = torch.arange(length, device=slot.device)
    code = torch.arange(codes, device=slot.device)
    here = slot.unsqueeze(-1) == code
    first = torch.where(here, place[:, None], length).flip(1).cummin(1).values.flip(1)
    first = nn.functional.pad(first, (0, 0, 0, 1), value=length)
    after = torch.searchsorted(minute, minute.gather(1, index), right=True)
    token = first.gather(1, after.unsqueeze(-1).expand(-1, -1, codes))
    ended = nn.functional.pad(minute, (0, 1), value=torch.inf)
    return ended.gather(1, token.flatten(1)).unflatten(1, token.shape[1:])


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


def _parts(batch: Batch) -> list[Batch]:
    pieces = {name: value.split(_FIT_PATIENTS) for name, value in batch.items()}
    return [dict(zip(pieces, part, strict=True)) for part in zip(*pieces.values(), strict=True)]
