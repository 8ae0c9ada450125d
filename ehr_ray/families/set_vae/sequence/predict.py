"""What a trained SeqSetVAE says of a stay: deterministic, from means, of what came before.

B patients, M sets, N tokens, D latent (all levels), W width of the prior.
"""

import torch
from torch import Tensor

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.set_vae.augment import hidden_tokens, keys_of
from ehr_ray.families.set_vae.chunking import by_size, where
from ehr_ray.families.set_vae.predict import (
    HIDING_SEED,
    encoded,
    estimates,
    even_sets,
    pooled,
    told_tokens,
)
from ehr_ray.families.set_vae.sequence import experts
from ehr_ray.families.set_vae.sequence.config import SeqSetVAEConfig
from ehr_ray.families.set_vae.sequence.model import Beliefs, SeqSetVAE
from ehr_ray.families.set_vae.sequence.statistics import STATISTICS, statistics
from ehr_ray.family import Batch

QUARTERS = 4


def predict(model: SeqSetVAE, batch: Batch) -> Batch:
    """Return `embedding` [B, W'] and `kl_nats` [B], the mean over a patient's sets."""
    seen = spaced(batch, model.config.predict_sets)
    beliefs = model.beliefs(seen)
    kl = experts.divergence(beliefs.post_mu, beliefs.post_logvar, beliefs.p_mu, beliefs.p_logvar)
    return {
        "embedding": _embedding(model, batch, seen, beliefs),
        "kl_nats": pooled(kl.sum(1, keepdim=True), seen["num_sets"], "mean").squeeze(1),
    }


def represent(model: SeqSetVAE, batch: Batch, seed: int | None) -> Tensor:
    """Return the embedding for a task's head; a seed says that it is trained."""
    seen = spaced(batch, model.config.predict_sets)
    return _embedding(model, batch, seen, model.task_beliefs(seen, seed))


def spaced(batch: Batch, limit: int | None) -> Batch:
    """Return the batch with at most `limit` sets of each patient, evenly spaced, counted anew."""
    kept = even_sets(batch, limit)
    sizes = kept["num_sets"]
    first = sizes.cumsum(0) - sizes
    place = torch.arange(len(kept["patient"]), device=sizes.device)
    return {**kept, "set_index": place - first[kept["patient"]]}


def represent_width(model: SeqSetVAE) -> int:
    """Return the width of the embedding."""
    config = model.config
    latent = config.levels * config.latent
    widths = {
        "sets": latent * len(config.pool),
        "quarters": latent * QUARTERS,
        "history": config.prior_width,
        "statistics": _variables(model) * len(STATISTICS),
    }
    return sum(widths[part] for part in config.embed)


def represent_columns(config: SeqSetVAEConfig, vocabulary: Vocabulary) -> tuple[str, ...]:
    """Return what the numbers of an embedding are of: places in a latent, or a code's statistic."""
    latent = config.levels * config.latent
    widths = {
        "sets": latent * len(config.pool),
        "quarters": latent * QUARTERS,
        "history": config.prior_width,
    }
    measured = [f"{which}//{code}" for code in vocabulary.codes for which in STATISTICS]
    parts = {part: [f"{part} {i}" for i in range(width)] for part, width in widths.items()}
    parts["statistics"] = measured
    return tuple(name for part, names in parts.items() if part in config.embed for name in names)


def _variables(model: SeqSetVAE) -> int:
    return len(model.sets.directions)


def _embedding(model: SeqSetVAE, batch: Batch, seen: Batch, beliefs: Beliefs) -> Tensor:
    """Return the parts asked for, of a whole batch and of beliefs about its `seen` sets."""
    config = model.config
    sizes, parts = seen["num_sets"], []
    if "sets" in config.embed:
        parts += [pooled(beliefs.post_mu, sizes, how) for how in config.pool]
    if "quarters" in config.embed:
        parts.append(quarters(beliefs.post_mu, seen))
    if "history" in config.embed:
        parts.append(beliefs.state)
    if "statistics" in config.embed:
        parts.append(statistics(batch, _variables(model)))
    return torch.cat(parts, 1)


def quarters(values: Tensor, batch: Batch) -> Tensor:
    """Return the means of rows [M, D] by quarter of each patient's time, [B, 4 * D].

    The time runs from the origin to the last set, so nothing later is needed to know it. An empty
    quarter is 0.
    """
    sizes, patient = batch["num_sets"], batch["patient"]
    minute = batch["minute"].float()
    end = minute[sizes.cumsum(0) - 1].clamp(min=1)
    quarter = (minute / end[patient] * QUARTERS).long().clamp(0, QUARTERS - 1)
    cell = patient * QUARTERS + quarter
    cells = len(sizes) * QUARTERS
    total = values.new_zeros(cells, values.shape[1]).index_add(0, cell, values)
    count = cell.new_zeros(cells).index_add(0, cell, torch.ones_like(cell)).clamp(min=1)
    return (total / count.unsqueeze(1)).view(len(sizes), -1)


def latents(model: SeqSetVAE, batch: Batch) -> Batch:
    """Return each set's posterior, the product: `mu`, `logvar` [M, D], `patient` [M]."""
    beliefs, real = model.beliefs(batch), batch["mask"].any(1)
    columns = {
        "mu": beliefs.post_mu,
        "logvar": beliefs.post_logvar,
        "patient": batch["patient"],
    }
    return where(real, columns)


def reconstruct(model: SeqSetVAE, batch: Batch) -> Batch:
    """Return each token's value beside the value read off the decoded set under its name.

    The same tokens as in training are hidden from the encoder (`hidden`), by a fixed seed.
    """
    hidden = hidden_tokens(batch, model.config, keys_of(batch, HIDING_SEED))
    pieces = by_size(batch, *model.config.chunk_limits)
    posterior = encoded(model.sets, batch, pieces, hidden)
    mu, logvar = (part.transpose(0, 1).flatten(1) for part in (posterior.mu, posterior.logvar))
    beliefs = model.expect(batch, mu, logvar, pieces.num_sets)
    estimate = estimates(model.sets, batch, model.levels_of(beliefs.post_mu), pieces)
    return told_tokens(batch, estimate, hidden)


def set_errors(model: SeqSetVAE, batch: Batch, latent: Tensor) -> Tensor:
    """Return the reconstruction error of every set from latents [M, D], [M]; nothing is drawn."""
    everything = torch.arange(len(batch["patient"]), device=latent.device)
    return model.errors(batch, latent, everything)
