"""What the time-to-event head is asked of tokens: at which moments, and when codes come after them.

B patients, T tokens, M moments, C codes.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ehr_ray.events.follow_up import followed_codes
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.data import token_book
from ehr_ray.family import Axis, Batch
from ehr_ray.nn.moment_heads import ENTRIES
from ehr_ray.nn.noise import combine, uniform
from ehr_ray.nn.time_to_event import TimeToEvent, Truth

MOMENTS = 64
"""Moments of a patient that are asked for at most, drawn anew in each epoch."""
_FIT_PATIENTS = 64
_MOMENT = 23


def code_slots(
    config: EventTransformerConfig, vocabulary: Vocabulary, chosen: npt.NDArray[np.int64]
) -> Tensor:
    """Return which of C chosen codes begins with each phrase, int64 [phrases]; C for none."""
    place = np.full(len(vocabulary) + 1, len(chosen))  # the last is -1: no code
    place[chosen] = np.arange(len(chosen))
    slot = place[token_book(vocabulary, config.token_options).begun[0]]
    return torch.from_numpy(slot)


class AskedTimes(Protocol):
    """A model with a head of times to events; `code_slot` is what `code_slots` returns."""

    code_slot: Tensor
    time_to_event: TimeToEvent

    def window(self, batch: Batch, seed: int | None) -> Batch:
        """Return the tokens that the model reads of each patient."""


def truth_of(model: AskedTimes, batch: Batch, index: Tensor, real: Tensor) -> Truth:
    """Return what came after the moments of the tokens `index` [B, M], strictly later."""
    slot, codes = model.code_slot[batch["phrase"]], len(model.time_to_event.codes)
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


def fit_rates(model: AskedTimes, batch: Batch) -> None:
    """Fit the rates of a new model on patients of train; nothing without the head."""
    if hasattr(model, "time_to_event"):
        parts = in_parts(model.window(batch, None))
        model.time_to_event.fit(truth_of(model, part, *asked_moments(part, 0)) for part in parts)


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


def in_parts(batch: Batch) -> list[Batch]:
    """Return a batch as several of few patients, without `place`."""
    pieces = {n: v.split(_FIT_PATIENTS) for n, v in batch.items() if n != "place"}
    return [dict(zip(pieces, part, strict=True)) for part in zip(*pieces.values(), strict=True)]
