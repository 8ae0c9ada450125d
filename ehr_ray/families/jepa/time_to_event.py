"""What the time-to-event head is asked: when codes come after the last hour of a context.

B patients, T rows, N occurrences of followed codes, C codes, D width.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from ehr_ray.families.jepa.dense_rows import rows_at
from ehr_ray.family import Batch
from ehr_ray.nn.time_to_event import TimeToEvent, Truth

HOUR = 60.0
"""Minutes of a row."""
FIT_DRAWS = 8
"""Contexts of a patient whose follow-up the heads are fitted on."""


def last_state(states: Tensor, mask: Tensor) -> Tensor:
    """Return the states of each patient's last row, [B, 1, D], of [B, T, D] without gaps."""
    return rows_at(states, (mask.sum(1, keepdim=True) - 1).clamp(min=0))


def end_of(batch: Batch, context: Tensor) -> Tensor:
    """Return the minute at which the last hour of the context, bool [B, T], ends: float64 [B].

    -infinity without any.
    """
    last = batch["minute"].masked_fill(~(context & batch["mask"]), -torch.inf).amax(1)
    return last + HOUR


def truth_after(batch: Batch, context: Tensor, head: TimeToEvent) -> Truth:
    """Return what came after the hour of the last row of the context, bool [B, T].

    One moment a patient. The encoder has seen nothing after it, whatever the mask is; where the
    record does not go on there is none.
    """
    moment = end_of(batch, context)
    real = torch.isfinite(moment) & (batch["end"] > moment)
    moment = torch.where(real, moment, 0.0)[:, None]
    minute = batch["followed_minute"]
    later = minute.masked_fill(minute < moment, torch.inf)
    came = minute.new_full((len(minute), len(head.codes)), torch.inf)
    came = came.scatter_reduce(1, batch["followed_code"], later, "amin")
    event = torch.isfinite(came) & real[:, None]
    hours = (torch.where(event, came, batch["end"][:, None]) - moment) / 60
    hours = torch.where(real[:, None], hours, 1.0).float()
    return Truth(hours.unsqueeze(1), event.unsqueeze(1), real.unsqueeze(1))


class Masking(Protocol):
    """A model that draws which rows it reads."""

    def masks(self, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """Return the context and the hidden rows of each patient, [B, T]."""


class AskedTimes(Masking, Protocol):
    """One with a head of times to events."""

    time_to_event: TimeToEvent


def fit_rates(model: AskedTimes, batch: Batch) -> None:
    """Fit the rates of a new model on patients of train; nothing without the head."""
    if hasattr(model, "time_to_event"):  # a task's model has none
        contexts = drawn_contexts(model, batch)
        model.time_to_event.fit(truth_after(batch, one, model.time_to_event) for one in contexts)


def drawn_contexts(model: Masking, batch: Batch) -> Iterator[Tensor]:
    """Yield several contexts of each patient, bool [B, T], on which a head is fitted."""
    return (model.masks(batch, seed)[0] for seed in range(FIT_DRAWS))
