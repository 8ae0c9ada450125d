"""What the head of future values is asked: what codes are measured at after a context.

B patients, T rows, N values of the codes that are asked, K windows, C codes.
"""

from typing import Protocol

import torch
from torch import Tensor

from ehr_ray.families.jepa.time_to_event import Masking, drawn_contexts, end_of
from ehr_ray.family import Batch
from ehr_ray.nn.future_value import FutureValue, ValueTruth, values_after


def values_of(batch: Batch, context: Tensor, head: FutureValue) -> ValueTruth:
    """Return what was measured after the hour of the last row of the context, bool [B, T].

    One moment a patient, as of times to events. A window holds its start, which is of the next
    hour, not its end. Values are asinh of z-scores, as in rows.
    """
    moment = end_of(batch, context).unsqueeze(1)
    there = torch.isfinite(moment)
    truth = values_after(
        batch["measured_code"],
        batch["measured_minute"],
        batch["measured_value"],
        torch.where(there, moment, 0.0),
        head.edges,
        len(head.codes),
        closed=False,
    )
    return truth._replace(asked=truth.asked & there[:, :, None, None])


class AskedValues(Masking, Protocol):
    """A model with a head of future values."""

    future_value: FutureValue


def fit_values(model: AskedValues, batch: Batch) -> None:
    """Fit the statistics of a new model on patients of train; nothing without the head."""
    if hasattr(model, "future_value"):  # a task's model has none
        contexts = drawn_contexts(model, batch)
        model.future_value.fit(values_of(batch, one, model.future_value) for one in contexts)
