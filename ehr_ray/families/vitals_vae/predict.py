"""What a trained vitals VAE says of a patient: deterministic, from posterior means.

Curves are decoded at the posterior mean that the whole likelihood would give
(`Posterior.whole_mean`): training weighs it by `evidence`, which draws means to the prior's.

B patients, H hours, V vitals, Z latent, R branches.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ehr_ray.families.vitals_vae.masking import VALIDATION_HIDE, hidden_cells
from ehr_ray.families.vitals_vae.model import VitalsVAE
from ehr_ray.families.vitals_vae.quantise import perplexity
from ehr_ray.family import Batch
from ehr_ray.nn.gaussian import kl_standard

HIDING_SEED = 1
"""Seed of the cells hidden to test imputation: the same ones every time."""


def predict(model: VitalsVAE, batch: Batch) -> Batch:
    """Return `embedding` [B, Z] and, one number a patient, `recon_error`, `n_obs` and `kl_nats`.

    The error is the mean squared one of observed cells, in z-scores. With a Gaussian latent
    `logvar` [B, Z] is given, with codes their numbers, `codes` [B, G], in place of `kl_nats`.
    """
    posterior = model.encode(batch)
    merged, _ = model.decode(posterior.whole_mean(model.evidence))
    observed = batch["observed"]
    count = observed.sum((1, 2))
    squared = ((merged - batch["value"]).square() * observed).sum((1, 2))
    found = {
        "embedding": posterior.mu,
        "recon_error": squared / count.clamp(min=1),
        "n_obs": count,
    }
    if posterior.logvar is None:
        assert posterior.codes is not None
        return found | {"codes": posterior.codes}
    kl = kl_standard(posterior.mu, posterior.logvar).sum(1)
    return found | {"logvar": posterior.logvar, "kl_nats": kl}


def latents(model: VitalsVAE, batch: Batch) -> Batch:
    """Return each patient's posterior: `mu`, `logvar` [B, Z], `patient` [B]; {} for codes."""
    posterior = model.encode(batch)
    if posterior.logvar is None:
        return {}
    patient = torch.arange(len(posterior.mu), device=posterior.mu.device)
    return {"mu": posterior.mu, "logvar": posterior.logvar, "patient": patient}


def grids(model: VitalsVAE, batch: Batch) -> Batch:
    """Return the grid and what the model makes of it, cells flattened to [B, H * V], z-scores.

    `value`, `observed`, and `hidden`, the share hidden to test imputation; `estimate` from all
    observed cells and `imputed` from those not hidden.
    """
    hidden = _hidden(model, batch)
    estimate, _ = model.decode(model.encode(batch).whole_mean(model.evidence))
    imputed, _ = model.decode(model.encode(batch, hidden).whole_mean(model.evidence))
    return {
        "patient": torch.arange(len(hidden), device=hidden.device),
        "value": batch["value"].flatten(1),
        "observed": batch["observed"].flatten(1),
        "hidden": hidden.flatten(1),
        "estimate": estimate.flatten(1),
        "imputed": imputed.flatten(1),
    }


def components(model: VitalsVAE, batch: Batch) -> Batch:
    """Return each branch's curves in the vitals' own units, [B, H * V] a branch; {} without."""
    _, branches = model.decode(model.encode(batch).whole_mean(model.evidence))
    if not len(branches):
        return {}
    curves = model.in_units(branches)
    scales = model.config.scales
    named = {s.name: curve.flatten(1) for s, curve in zip(scales, curves, strict=True)}
    return {"patient": torch.arange(curves.shape[1], device=curves.device), **named}


def diagnosed(model: VitalsVAE, batches: Iterable[Batch]) -> dict[str, float]:
    """Return how codes are used, where there are any, and of a published objective `mse_hidden`.

    That objective hides nothing, in validation neither: what ranks trials is measured here.
    """
    found: dict[str, float] = {}
    if model.config.objective == "published":
        batches = list(batches)
        found = hidden_error(model, batches)
    return found | code_use(model, batches)


@torch.no_grad()
def hidden_error(model: VitalsVAE, batches: Iterable[Batch]) -> dict[str, float]:
    """Return `mse_hidden`, of cells the encoder is not shown, z-scores; {} without any."""
    total = count = 0.0
    for batch in batches:
        hidden = _hidden(model, batch)
        curves, _ = model.decode(model.encode(batch, hidden).whole_mean(model.evidence))
        total += float(((curves - batch["value"]).square() * hidden).sum())
        count += float(hidden.sum())
    return {"mse_hidden": total / count} if count else {}


def code_use(model: VitalsVAE, batches: Iterable[Batch]) -> dict[str, float]:
    """Return how the codes of some patients use the codebook, without reading any where none are.

    `code_perplexity` is exp(entropy of use), `code_perplexity_share` its share of the codebook,
    `codes_used` counts the entries that any patient has.
    """
    if model.quantiser is None:
        return {}
    codes = [model.encode(batch).codes for batch in batches]
    if not codes:
        return {}
    size = model.config.codebook
    value, used = perplexity(torch.cat([c for c in codes if c is not None]).cpu().numpy(), size)
    return {
        "code_perplexity": value,
        "code_perplexity_share": value / size,
        "codes_used": float(used),
    }


def _hidden(model: VitalsVAE, batch: Batch) -> Tensor:
    return hidden_cells(batch, model.config, HIDING_SEED, cut=False, share=VALIDATION_HIDE)
