"""The objective: two outcomes, a contrast, the latent's divergence, and imputation.

B patients, M modalities, K refinements, Z latent, 2 outcomes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.events.modalities import WIDTH
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.model import HCAT
from ehr_ray.family import Batch, Scheduled, Term, Terms, unwrapped
from ehr_ray.nn.focal import focal
from ehr_ray.nn.gaussian import free_bits, kl_standard
from ehr_ray.nn.noise import combine


def loss(model: nn.Module, batch: Batch, scheduled: Scheduled, seed: int) -> Terms:
    """Return the terms of a batch, with the seed's weights.

    `surv` and `rec` are a weighted cross-entropy (or focal loss) a known row; `recon` is the
    squared error of decoded tokens and `impute` the negative log-likelihood of artificially hidden
    ones, a number, the mean over the first imputation and each refinement. `kl` is in nats a number
    of a token, with free bits, so that it weighs against them as in an evidence bound; for the log
    alone `kl_nats` is the divergence before them, a patient, and `impute_mse` the squared error of
    the last refinement.
    """
    plain: HCAT = unwrapped(model)
    config = plain.config
    out = model(batch, seed)
    weight, label = plain.weights(batch), batch["label"].clamp(min=0)
    terms: Terms = {}
    for place, (name, alpha) in enumerate((("surv", config.alpha_surv), ("rec", config.alpha_rec))):
        each = outcome_loss(out["logit"][..., place].float(), label[:, place], config)
        total = (each * weight[:, place]).sum() / len(out["logit"])
        terms[name] = Term(total, weight[:, place].sum(), alpha)
    if config.alpha_con:
        patients = torch.full((), float(len(label)), device=label.device)
        contrast = info_nce(out["first"].float(), out["second"].float(), config.contrastive_temp)
        terms["con"] = Term(contrast, patients, config.alpha_con)
    if "mu" in out:
        terms |= imputation(out, config, scheduled)
    return terms


def counts(model: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return the weights of outcomes, tokens shown and hidden, and patients: each [], by term."""
    plain: HCAT = unwrapped(model)
    weight = plain.weights(batch)
    patients = torch.full((), float(len(weight)), device=weight.device)
    found = {"surv": weight[:, 0].sum(), "rec": weight[:, 1].sum(), "con": patients}
    if plain.imputer is not None:
        present, key = plain.tokenizer.present(batch), combine(batch["subject_id"], seed)
        hidden = plain.hidden(present, key, seed, drop=model.training)
        found |= {"kl": patients * WIDTH, "recon": (present & ~hidden).sum()}
        found["impute"] = hidden.sum()
    return found


def needs_pairs(config: HCATConfig) -> str | None:
    """Return the setting that compares patients of a batch, if there is one."""
    return f"model.alpha_con={config.alpha_con}" if config.alpha_con else None


def outcome_loss(logit: Tensor, label: Tensor, config: HCATConfig) -> Tensor:
    """Return cross-entropy, turned from easy rows where `focal_gamma` is above 0."""
    found = F.binary_cross_entropy_with_logits(logit, label.expand_as(logit), reduction="none")
    return focal(found, config.focal_gamma)


def imputation(out: dict[str, Tensor], config: HCATConfig, scheduled: Scheduled) -> Terms:
    """Return `kl`, `recon`, `impute` and, for the log, `kl_nats` and `impute_mse`."""
    patients = torch.full((), float(len(out["mu"])), device=out["mu"].device)
    each = kl_standard(out["mu"], out["logvar_z"])
    kl = free_bits(each, scheduled["free_bits"]).sum()
    visible, hidden = out["visible"].float(), out["hidden"].float()
    error, logvar = out["steps"].float(), out["steps_logvar"].float()
    nll = 0.5 * (error * torch.exp(-logvar) + logvar)
    alpha = config.alpha_impute
    return {
        "kl": Term(kl, patients * WIDTH, config.alpha_kl * scheduled["beta"]),
        "kl_nats": Term(each.sum().detach(), patients, 0.0),
        "recon": Term((out["recon"].float() * visible).sum(), visible.sum(), alpha),
        "impute": Term((nll.mean(0) * hidden).sum(), hidden.sum(), alpha),
        "impute_mse": Term((error[-1] * hidden).sum().detach(), hidden.sum(), 0.0),
    }


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the contrast of two views, unit vectors [B, W], summed over patients.

    A patient's other view is the positive, everybody else's both views are negatives
    (NT-Xent, Chen et al. 2020, eq. 1), the mean of both directions. Everybody is who shares the
    worker's micro-batch: ranks contrast their own patients, so more ranks mean fewer negatives.
    """
    every = torch.cat([first, second]).float()
    with torch.autocast(every.device.type, enabled=False):
        score = every @ every.T / temperature
    score = score.masked_fill(torch.eye(len(every), dtype=torch.bool, device=score.device), -1e9)
    other = torch.arange(len(every), device=score.device).roll(len(first))
    return F.cross_entropy(score, other, reduction="sum") / 2
