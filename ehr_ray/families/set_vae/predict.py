"""What a trained SetVAE says of a patient: deterministic, from posterior means.

B patients, M sets, N tokens, L levels, Z latent.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ehr_ray.families.set_vae.augment import Perturbed, hidden_tokens, keys_of, select_sets
from ehr_ray.families.set_vae.chunking import (
    Pieces,
    bounded,
    by_size,
    chunk,
    joined,
    joined_tokens,
    where,
)
from ehr_ray.families.set_vae.config import SetVAEConfig
from ehr_ray.families.set_vae.loss import chamfer
from ehr_ray.families.set_vae.model import Posterior, SetVAE
from ehr_ray.families.set_vae.wrong_sets import BETA, score_table
from ehr_ray.family import Batch
from ehr_ray.nn.gaussian import kl_standard

HIDING_SEED = 1
"""Seed of the tokens hidden to test reconstruction: the same ones every time."""


def predict(model: SetVAE, batch: Batch) -> Batch:
    """Return `embedding` [B, L * Z * pools], and `kl_nats` [B], the mean over a patient's sets."""
    batch = even_sets(batch, _limit(model))
    posterior = encoded(model, batch, by_size(batch, *model.config.chunk_limits))
    kl = kl_standard(posterior.mu, posterior.logvar).sum((0, 2))
    return {
        "embedding": _pooled_means(model, posterior, batch),
        "kl_nats": pooled(kl.unsqueeze(1), batch["num_sets"], "mean").squeeze(1),
    }


def encoded(
    model: SetVAE,
    batch: Batch,
    pieces: Pieces,
    hidden: Tensor | None = None,
    seen: Perturbed | None = None,
) -> Posterior:
    """Return the posterior of all sets, read in chunks, as they are `seen` in training.

    Values of `hidden` [M, N] are not seen.
    """

    def read(part: Batch, shaken: Perturbed | None, hides: Tensor | None) -> tuple[Tensor, Tensor]:
        posterior = model.encode(part, shaken, hides)
        return posterior.mu.transpose(0, 1), posterior.logvar.transpose(0, 1)

    parts = [
        bounded(
            pieces,
            read,
            chunk(batch, i, width),
            None if seen is None else seen.chunk(i, width),
            None if hidden is None else hidden[i, :width],
            again=model.recomputed,
        )
        for i, width in pieces
    ]
    mu, logvar = (joined(list(column), pieces.indices) for column in zip(*parts, strict=True))
    return Posterior(mu.transpose(0, 1), logvar.transpose(0, 1))


def estimates(model: SetVAE, batch: Batch, levels: Sequence[Tensor], pieces: Pieces) -> Tensor:
    """Return each token's value [M, N] as decoded from latents [M, Z] of each level, in chunks.

    It is the projection of a token's decoded vector on its variable's direction.
    """
    parts = []
    for index, width in pieces:
        code = batch["code"][index, :width]
        decoded = model.decode([level[index] for level in levels], code)
        parts.append((decoded * F.embedding(code, model.directions)).sum(-1))
    return joined_tokens(parts, pieces, batch["code"])


def represent(model: SetVAE, batch: Batch, seed: int | None) -> Tensor:
    """Return the embedding [B, L * Z * pools] for a task; values may be hidden in training.

    Sets are read in chunks, whose activations are computed once more where there are many.
    """
    batch = even_sets(batch, _limit(model))
    seen = None
    if seed is not None and model.config.perturb_task:
        seen = model.perturbed(batch, keys_of(batch, seed), seed)
    pieces = by_size(batch, *model.config.chunk_limits)
    return _pooled_means(model, encoded(model, batch, pieces, seen=seen), batch)


def represent_width(model: SetVAE) -> int:
    """Return L * Z * pools."""
    config = model.config
    return config.levels * config.latent * len(config.pool)


def _limit(model: SetVAE) -> int | None:
    config = model.config
    assert isinstance(config, SetVAEConfig)
    return config.predict_sets


def _pooled_means(model: SetVAE, posterior: Posterior, batch: Batch) -> Tensor:
    mu = posterior.mu.transpose(0, 1).flatten(1)  # [M, L * Z]
    return torch.cat([pooled(mu, batch["num_sets"], how) for how in model.config.pool], 1)


def even_sets(batch: Batch, limit: int | None) -> Batch:
    """Return the batch with at most `limit` sets of each patient, evenly spaced, both ends kept."""
    if limit is None:
        return batch
    sizes, counts = batch["num_sets"], batch["num_sets"].tolist()
    if max(counts) <= limit:
        return batch
    first = sizes.cumsum(0) - sizes
    step = torch.arange(limit, device=sizes.device)
    spaced = first[:, None] + torch.round(step * (sizes[:, None] - 1) / max(1, limit - 1)).long()
    keep = (sizes <= limit)[batch["patient"]]
    keep[spaced.flatten()] = True
    total = sum(min(count, limit) for count in counts)
    return select_sets(batch, keep, total, sizes.clamp(max=limit))


def pooled(values: Tensor, sizes: Tensor, how: str) -> Tensor:
    """Reduce consecutive runs of rows, [sum(sizes), F] to [len(sizes), F]."""
    if how == "last":
        return values[sizes.cumsum(0) - 1]
    if how == "first":
        return values[sizes.cumsum(0) - sizes]
    if how == "std":
        mean = _reduced(values, "mean", sizes)
        centred = values - mean.repeat_interleave(sizes, 0, output_size=len(values))
        variance = _reduced(centred.square(), "mean", sizes)
        # The root's gradient at zero, of a patient with one set, is infinite.
        return torch.where(variance > 0, variance, 1.0).sqrt() * (variance > 0)
    return _reduced(values, how, sizes)


def _reduced(values: Tensor, how: str, sizes: Tensor) -> Tensor:
    # "Unsafe" leaves out a check of the sizes, for which the host would wait.
    return torch.segment_reduce(values, how, lengths=sizes, unsafe=True)


def latents(model: SetVAE, batch: Batch) -> Batch:
    """Return each set's posterior, levels joined: `mu`, `logvar` [M, L * Z], `patient` [M]."""
    posterior = encoded(model, batch, by_size(batch, *model.config.chunk_limits))
    real = batch["mask"].any(1)
    columns = {
        "mu": posterior.mu.transpose(0, 1).flatten(1),
        "logvar": posterior.logvar.transpose(0, 1).flatten(1),
        "patient": batch["patient"],
    }
    return where(real, columns)


def reconstruct(model: SetVAE, batch: Batch) -> Batch:
    """Return each token's value beside the value read off the decoded set under its name.

    The same tokens as in training are hidden from the encoder (`hidden`), by a fixed seed.
    """
    hidden = hidden_tokens(batch, model.config, keys_of(batch, HIDING_SEED))
    pieces = by_size(batch, *model.config.chunk_limits)
    posterior = encoded(model, batch, pieces, hidden)
    estimate = estimates(model, batch, list(posterior.mu), pieces)
    return told_tokens(batch, estimate, hidden)


def told_tokens(batch: Batch, estimate: Tensor, hidden: Tensor) -> Batch:
    """Return the tokens of a batch, a row each, with what was said of them, [M, N]."""
    mask = batch["mask"]
    columns = {
        "patient": batch["patient"].unsqueeze(1).expand_as(mask),
        "set": batch["set_index"].unsqueeze(1).expand_as(mask),
        "code": batch["code"],
        "value": batch["value"],
        "estimate": estimate,
        "carried": batch["carried"],
        "hidden": hidden,
    }
    return where(mask, columns)


def anomalies(model: SetVAE, batch: Batch) -> Batch:
    """Return the scores of every set by itself, and of one of each patient made wrong.

    `patient`, `set`, `minute`, `kind`; `kl` from N(0, 1), `recon` and `composition` from the mean
    and `nelbo`, their weighted sum. What was before a set has no part in it.
    """
    return score_table(batch, model.config.clip_value, lambda sets, _: set_scores(model, sets))


def set_scores(model: SetVAE, sets: Batch) -> dict[str, Tensor]:
    """Return `recon`, `composition`, `kl` and `nelbo` of sets, [M] each.

    Sets of like size are read together.
    """
    pieces = by_size(sets, *model.config.chunk_limits)
    recons, kls, means = [], [], []
    for index, width in pieces:
        part = chunk(sets, index, width)
        posterior = model.encode(part)
        decoded = model.decode(list(posterior.mu), part["code"])
        recons.append(chamfer(decoded, model.target(part), part["mask"], model.config))
        kls.append(kl_standard(posterior.mu, posterior.logvar).sum((0, 2)))
        means.append(posterior.mu.transpose(0, 1).flatten(1))
    recon, kl, mean = (joined(parts, pieces.indices) for parts in (recons, kls, means))
    return scores(model, sets, mean, recon, kl)


def scores(
    model: SetVAE, sets: Batch, latent: Tensor, recon: Tensor, kl: Tensor
) -> dict[str, Tensor]:
    """Return what is told of sets [M] whose latent is `latent` [M, L * Z]: `nelbo` and its parts.

    `nelbo` = recon + composition_weight * composition + BETA * kl.
    """
    composition = model.compositions(latent, sets)
    nelbo = recon + model.config.composition_weight * composition + BETA * kl
    return {"recon": recon, "composition": composition, "kl": kl, "nelbo": nelbo}
