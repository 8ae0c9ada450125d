"""The objective: masked reconstruction by the merged curve and by every branch, and divergence.

B patients, H hours, V vitals, Z latent, R branches.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ehr_ray.families.vitals_vae.config import VitalsVAEConfig
from ehr_ray.family import Batch, Scheduled, Term, Terms, unwrapped
from ehr_ray.nn.gaussian import free_bits, kl_standard


def loss(model: nn.Module, batch: Batch, scheduled: Scheduled, seed: int) -> Terms:
    """Return the terms of a batch.

    `recon` and `branches` are negative log-likelihoods in nats a patient, `kl` the penalty with
    free bits; for the log alone `kl_nats` is the divergence before them, a patient,
    `kl_per_dim` the same a dimension, `mse` and `mse_hidden` squared errors (z-scores) of cells the
    encoder saw and of those hidden from it. Discrete codes have `codebook` and `commit` in place of
    `kl`.
    """
    plain = unwrapped(model)
    config: VitalsVAEConfig = plain.config
    out = model(batch, seed, scheduled.get("mean_share", 0.0))
    observed, hidden = batch["observed"], out["hidden"]
    squared = (out["merged"].float() - batch["value"]).square()
    seen = observed & ~hidden
    terms = reconstruction(out, batch, squared, config)
    terms |= latent_terms(out, config, scheduled)
    terms["mse"] = Term((squared * seen).sum().detach(), seen.sum().float(), 0.0)
    if config.objective == "elbo":
        terms["mse_hidden"] = Term((squared * hidden).sum().detach(), hidden.sum().float(), 0.0)
    return terms


def reconstruction(
    out: dict[str, Tensor], batch: Batch, squared: Tensor, config: VitalsVAEConfig
) -> Terms:
    """Return `recon` of the merged curve and `branches`, the mean over branches, if there are."""
    observed = batch["observed"]
    patients = squared.new_full((), float(len(observed)))
    if config.objective == "published":
        share = _range_share(config, squared)
        return {"recon": Term((squared * share * observed).sum(), observed.sum().float())}
    noise = out["log_noise"].float()
    weight = config.evidence
    terms = {"recon": Term(gaussian(squared, noise, observed), patients, weight)}
    if len(out["branches"]):
        errors = (out["branches"].float() - batch["value"]).square()
        # The noise is the merged curve's: a branch must not pay its error by raising it.
        total = gaussian(errors, noise.detach(), observed) / len(errors)
        terms["branches"] = Term(total, patients, weight * config.branch_weight)
    return terms


def counts(model: nn.Module, batch: Batch, _seed: int) -> dict[str, Tensor]:
    """Return the patients, of the published objective the observed cells and latents: [], by term.

    None depends on what is hidden: `recon` is of every observed cell.
    """
    config: VitalsVAEConfig = unwrapped(model).config
    observed = batch["observed"]
    patients = torch.full((), float(len(observed)), device=observed.device)
    found = dict.fromkeys(("recon", "branches", "codebook", "commit", "kl"), patients)
    if config.objective == "published":
        found |= {"recon": observed.sum(), "kl": patients * config.embedding_width}
    return found


def gaussian(squared: Tensor, log_noise: Tensor, observed: Tensor) -> Tensor:
    """Return -log N(value; curve, noise) over observed cells, in nats without its constant."""
    nats = 0.5 * squared * torch.exp(-2 * log_noise) + log_noise
    return (nats * observed).sum()


def latent_terms(out: dict[str, Any], config: VitalsVAEConfig, scheduled: Scheduled) -> Terms:
    """Return the divergence's terms, or those of the codes."""
    patients = out["mu"].new_full((), float(len(out["mu"])))
    if "codes" in out:
        return {
            "codebook": Term(out["to_members"].sum(), patients),
            "commit": Term(out["to_codes"].sum(), patients, config.commitment),
        }
    kl = kl_standard(out["mu"], out["logvar"])
    raw = kl.sum()
    # A patient of whom the decoder alone learns must not have the encoder learn of divergence only.
    kl = torch.where(out["from_mean"].unsqueeze(1), kl.detach(), kl)
    if config.objective == "published":
        # Zero, with a gradient of zero, below the free bits: what the published code logs as "kl".
        penalty, count = (kl - scheduled["free_bits"]).clamp(min=0).sum(), patients * kl.shape[1]
    else:
        penalty, count = free_bits(kl, scheduled["free_bits"]).sum(), patients
    return {
        "kl": Term(penalty, count, scheduled["beta"]),
        "kl_nats": Term(raw.detach(), patients, 0.0),
        "kl_per_dim": Term(raw.detach(), patients * kl.shape[1], 0.0),
    }


def _range_share(config: VitalsVAEConfig, like: Tensor) -> Tensor:
    """Return what turns squared z-scores to the published scale, where a range is 1 wide, [V].

    A valid range is about eight standard deviations wide, as cohort extremes are.
    """
    return torch.full((config.num_vitals,), 1 / 8**2, device=like.device)
