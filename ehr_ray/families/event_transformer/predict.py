"""One vector a patient: what a task head reads, and what `embed` writes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ehr_ray.families.event_transformer.model import EventTransformer
from ehr_ray.families.event_transformer.time_to_event import moments
from ehr_ray.family import Batch

DAY = 24 * 60.0
"""Minutes of the first day, after which a record that has no prediction time is judged."""


def predict(model: EventTransformer, batch: Batch) -> Batch:
    """Return `embedding` [B, D * vectors], a vector for each pooling and query."""
    return {"embedding": represent(model, batch)}


def hazards(model: EventTransformer, batch: Batch) -> Batch:
    """Return hazards after the last token, and after the last one of the first 24 hours.

    An entry each: `patient`, `day` (1: of the first 24 hours, of a record that goes on after them;
    0: of the last token) and `minute` of that token, all [N]; `hazard`, events an hour by bin and
    code, float32 [N, K * C]. Empty for a model without the head, and of what was cut off before.
    """
    if not hasattr(model, "time_to_event"):
        return {}
    batch = model.window(batch, None)
    minute, mask = moments(batch), batch["mask"]
    last, early = mask.sum(1) - 1, (minute <= DAY).sum(1) - 1
    index = torch.stack([last, early], 1)
    goes_on = torch.stack([last >= 0, early < last], 1)
    patient, day = ((index >= 0) & goes_on).nonzero(as_tuple=True)
    token = index[patient, day]
    state = model.norm(model.encode(batch)[patient, token])
    return {
        "patient": patient,
        "day": day,
        "minute": minute[patient, token],
        "hazard": model.time_to_event.log_hazard(state).exp().flatten(1),
    }


def represent(model: EventTransformer, batch: Batch, seed: int | None = None) -> Tensor:
    """Return the pooled states of each patient, each normalised, float32 [B, D * vectors].

    With a seed a longer record is read through a random window, where the config has it so.
    """
    batch = model.window(batch, seed)
    hidden = model.encode(batch).float()
    tokens = hidden[:, -batch["mask"].shape[1] :]
    width = model.config.model_dim
    parts = [pooled(model, tokens, hidden, batch, how) for how in model.config.pooling]
    vectors = torch.cat(parts, -1).unflatten(-1, (-1, width))
    return F.layer_norm(vectors, (width,)).flatten(1)


def represent_width(model: EventTransformer) -> int:
    """Return D * vectors: one for each pooling, and for each query of `attention`."""
    config = model.config
    vectors = sum(config.pool_queries if how == "attention" else 1 for how in config.pooling)
    return config.model_dim * vectors


def pooled(
    model: EventTransformer, tokens: Tensor, hidden: Tensor, batch: Batch, how: str
) -> Tensor:
    """Return [B, D], or [B, Q * D] of Q queries.

    Zeros for a patient without tokens, except for an encoder's `cls`.
    """
    if how == "cls" and model.config.arch == "encoder":
        return hidden[:, 0]
    mask = batch["mask"]
    weight = mask.unsqueeze(-1)
    if how in ("last", "cls"):
        last = (mask.sum(1) - 1).clamp(min=0)
        return (tokens * weight)[torch.arange(len(tokens), device=mask.device), last]
    if how == "max":
        highest = tokens.masked_fill(~weight, -torch.inf).amax(1)
        return highest.masked_fill(~mask.any(1, keepdim=True), 0.0)
    if how == "attention":
        share = model.pool_scores(batch).masked_fill(~weight, -1e30).softmax(1) * weight
        with torch.autocast(tokens.device.type, enabled=False):  # a mean, as the other ways are
            return torch.einsum("btq,btd->bqd", share, tokens).flatten(1)
    return (tokens * weight).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
