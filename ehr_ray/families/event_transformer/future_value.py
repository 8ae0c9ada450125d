"""What the head of future values is asked of tokens: what codes are measured at after moments.

B patients, M moments, K windows, C codes.
"""

from typing import Protocol

import torch
from torch import Tensor

from ehr_ray.events.follow_up import measured_codes
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.time_to_event import asked_moments, in_parts, moments
from ehr_ray.family import Axis, Batch
from ehr_ray.nn.future_value import FutureValue, ValueTruth, values_after


class AskedValues(Protocol):
    """A model with a head of future values; `value_slot` is what `code_slots` returns."""

    value_slot: Tensor
    future_value: FutureValue

    def window(self, batch: Batch, seed: int | None) -> Batch:
        """Return the tokens that the model reads of each patient."""


def values_of(model: AskedValues, batch: Batch, index: Tensor, real: Tensor) -> ValueTruth:
    """Return what was measured after the moments of the tokens `index` [B, M].

    A window holds its end, not its start: a value at the minute of the moment is known by then.
    Values are those of the batch, z-scores within `clip_value`.
    """
    head, minute = model.future_value, moments(batch)
    measured = batch["valued"] & batch["mask"]
    codes = len(head.codes)
    code = torch.where(measured, model.value_slot[batch["phrase"]], codes)
    moment = minute.gather(1, index)
    truth = values_after(code, minute, batch["value"], moment, head.edges, codes, closed=True)
    return truth._replace(asked=truth.asked & real[:, :, None, None])


def fit_values(model: AskedValues, batch: Batch) -> None:
    """Fit the statistics of a new model on patients of train; nothing without the head."""
    if hasattr(model, "future_value"):
        parts = in_parts(model.window(batch, None))
        model.future_value.fit(values_of(model, part, *asked_moments(part, 0)) for part in parts)


def value_axes(config: EventTransformerConfig, vocabulary: Vocabulary) -> dict[str, Axis]:
    """Return which code each row of the head is of."""
    if not config.future_value_weight:
        return {}
    chosen = measured_codes(config.future_value_codes, vocabulary)
    return {"future_value.codes": Axis(0, tuple(vocabulary.codes[i] for i in chosen))}
