"""The SetVAE objective: Chamfer reconstruction of u * x, and the divergence of every level."""

import torch
from torch import Tensor, nn

from ehr_ray.families.set_vae.augment import drawn_sets, sample_sets, set_key
from ehr_ray.families.set_vae.config import SetConfig, SetVAEConfig
from ehr_ray.family import Batch, Scheduled, Term, Terms, unwrapped
from ehr_ray.nn.gaussian import free_bits, kl_standard

FAR = 1e9
SOFT_NORM = 0.3


def loss(model: nn.Module, batch: Batch, scheduled: Scheduled, seed: int) -> Terms:
    """Return terms per set: `recon`, and `kl` with free bits; for the log raw nats and padding.

    With `composition_weight` also `composition`, how unlikely the set's variables are.
    """
    config: SetVAEConfig = unwrapped(model).config
    batch = sample_sets(batch, config.sets_per_patient, seed)
    out = model(batch, seed)
    real = batch["mask"].any(1)
    count = real.sum().float()
    kl = kl_standard(out["mu"], out["logvar"])  # [L, M, Z]
    penal = free_bits(kl, scheduled["free_bits"]).sum((0, 2))
    raw = kl.sum((0, 2))
    weight = config.composition_weight
    composition = Term(out["composition"].sum(), count, coef=weight)
    return {
        "recon": Term((out["recon"] * real).sum(), count),
        **({"composition": composition} if weight else {}),
        "kl": Term((penal * real).sum(), count, coef=scheduled["beta"]),
        "kl_nats": Term((raw * real).sum(), count, coef=0.0),
        "padding": Term(out["padding"].float(), out["padded"], coef=0.0),
    }


def counts(model: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return the sets with a token among those drawn of each patient, [], by term."""
    per_patient = unwrapped(model).config.sets_per_patient
    real = batch["mask"].any(1)
    if per_patient is not None:
        real = real & drawn_sets(batch, per_patient, set_key(batch, seed))
    return dict.fromkeys(("recon", "composition", "kl"), real.sum())


def chamfer(decoded: Tensor, target: Tensor, mask: Tensor, config: SetConfig) -> Tensor:
    """Return each set's reconstruction error, a Chamfer distance summed over its tokens, [M].

    For a distance D it is half of sum_i min_j D_ij + sum_j min_i D_ij; the distances are
    1 - cos, | |r| - |t| | and |r - t|^2, each matched on its own. The cosine is signed: a value
    above and one below the mean are different; it is softened below norms of `SOFT_NORM`, where a
    value is so near the mean that its sign means nothing. A sum, not a mean, so that a token
    weighs the same against the latent's nats in small sets and in large ones. A Chamfer distance
    alone is content with any vectors near the targets; `named_weight` adds |r_i - t_i|^2 of each
    token and its own vector, without which values cannot be read off under their names.
    """
    decoded, target = decoded.float(), target.float()
    with torch.autocast(decoded.device.type, enabled=False):
        dot = decoded @ target.transpose(1, 2)
    squared_r = decoded.square().sum(-1).unsqueeze(2)
    squared_t = target.square().sum(-1).unsqueeze(1)
    norm_r, norm_t = (squared_r + 1e-8).sqrt(), (squared_t + 1e-8).sqrt()
    soft_r, soft_t = (squared_r + SOFT_NORM**2).sqrt(), (squared_t + SOFT_NORM**2).sqrt()
    parts = [
        (config.direction_weight, 1 - dot / (soft_r * soft_t)),
        (config.magnitude_weight, (norm_r - norm_t).abs()),
        (config.vector_weight, (squared_r + squared_t - 2 * dot).clamp(min=0)),
    ]
    pairs = mask.unsqueeze(2) & mask.unsqueeze(1)
    total = decoded.new_zeros(len(decoded))
    for weight, distance in parts:
        if weight:
            distance = distance.masked_fill(~pairs, FAR)
            nearest = distance.amin(2).masked_fill(~mask, 0) + distance.amin(1).masked_fill(
                ~mask, 0
            )
            total = total + weight * nearest.sum(1) / 2
    if config.named_weight:
        own = (decoded - target).square().sum(-1).masked_fill(~mask, 0)
        total = total + config.named_weight * own.sum(1)
    if config.variance_weight:
        total = total - config.variance_weight * _spread(decoded, mask) * mask.sum(1)
    return total


def _spread(decoded: Tensor, mask: Tensor) -> Tensor:
    """Return the variance over a set's tokens, averaged over dimensions, [M]."""
    weight = mask.unsqueeze(-1).float()
    count = weight.sum(1).clamp(min=1)
    mean = (decoded * weight).sum(1) / count
    return (((decoded - mean.unsqueeze(1)) * weight).square().sum(1) / count).mean(-1)
