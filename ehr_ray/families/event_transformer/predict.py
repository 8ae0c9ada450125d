"""One vector a patient: what a task head reads, and what `embed` writes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ehr_ray.families.event_transformer.model import EventTransformer
from ehr_ray.family import Batch


def predict(model: EventTransformer, batch: Batch) -> Batch:
    """Return `embedding` [B, D * poolings]."""
    return {"embedding": represent(model, batch)}


def represent(model: EventTransformer, batch: Batch, seed: int | None = None) -> Tensor:
    """Return the pooled states of each patient, each normalised, float32 [B, D * poolings].

    With a seed a longer record is read through a random window, where the config has it so.
    """
    batch = model.window(batch, seed)
    hidden, mask = model.encode(batch).float(), batch["mask"]
    tokens = hidden[:, -mask.shape[1] :]
    parts = [pooled(model, tokens, hidden, mask, how) for how in model.config.pooling]
    return torch.cat([F.layer_norm(part, part.shape[-1:]) for part in parts], -1)


def represent_width(model: EventTransformer) -> int:
    """Return D * poolings."""
    return model.config.model_dim * len(model.config.pooling)


def pooled(
    model: EventTransformer, tokens: Tensor, hidden: Tensor, mask: Tensor, how: str
) -> Tensor:
    """Return [B, D]; zeros for a patient without tokens, except for an encoder's `cls`."""
    if how == "cls" and model.config.arch == "encoder":
        return hidden[:, 0]
    weight = mask.unsqueeze(-1)
    if how in ("last", "cls"):
        last = (mask.sum(1) - 1).clamp(min=0)
        return (tokens * weight)[torch.arange(len(tokens), device=mask.device), last]
    if how == "max":
        highest = tokens.masked_fill(~weight, -torch.inf).amax(1)
        return highest.masked_fill(~mask.any(1, keepdim=True), 0.0)
    if how == "attention":
        score = (tokens @ model.pool_query) / tokens.shape[-1] ** 0.5
        share = score.masked_fill(~mask, -1e30).softmax(-1) * mask
        return torch.einsum("bt,btd->bd", share, tokens)
    return (tokens * weight).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
