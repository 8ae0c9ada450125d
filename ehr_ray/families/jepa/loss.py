"""The JEPA objective: hidden rows' states, their values, and what keeps patients apart."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.families.jepa.config import TEMPERATURE, JEPAConfig
from ehr_ray.families.jepa.dense_rows import dense
from ehr_ray.families.jepa.future_value import values_of
from ehr_ray.families.jepa.regularise import isotropy, variance_and_covariance
from ehr_ray.families.jepa.time_to_event import truth_after
from ehr_ray.family import Batch, Scheduled, Term, Terms, unwrapped

WEIGHTS = {"vicreg": 1.0, "sigreg": 0.05}
CONTRASTED = ("predicted", "goal")
COVARIANCE = 1 / 25
"""Weight of VICReg's covariance over that of its variance, as published."""


def loss(model: nn.Module, batch: Batch, _scheduled: Scheduled, seed: int) -> Terms:
    """Return terms: `latent` per hidden row, `value` per value observed in one; see `regularise`.

    Smooth-L1, or for states the nats of `contrast`. `time_to_event` is per context and code, in
    nats of a density of hours, `future_value` per window in which a code is measured, in nats of a
    density of its scaled values. Only logged are `time_to_event_baseline` and
    `future_value_baseline`, the same of the rates of train and of the last value carried forward,
    and `padding`.
    """
    config: JEPAConfig = unwrapped(model).config
    out = model(batch, seed)
    wanted = out["wanted"]
    count = wanted.sum().float()
    if config.latent_loss == "infonce":
        chosen = (out[name].flatten(0, 1).index_select(0, out["hidden"]) for name in CONTRASTED)
        error = contrast(*chosen)
    else:
        error = F.smooth_l1_loss(out["predicted"], out["goal"], reduction="none").mean(-1) * wanted
    terms = {"latent": Term(error.sum(), count)}
    if config.value_weight:
        observed = out["observed"]
        missed = F.smooth_l1_loss(out["estimate"], out["level"], reduction="none")
        count = observed.sum().float()
        terms["value"] = Term((missed * observed).sum(), count, coef=config.value_weight)
    if config.time_to_event_weight:
        answers = out["answers"]
        terms["time_to_event"] = Term(out["time_to_event"], answers, config.time_to_event_weight)
        terms["time_to_event_baseline"] = Term(out["time_to_event_baseline"], answers, coef=0.0)
    if config.future_value_weight:
        answers = out["values"]
        terms["future_value"] = Term(out["future_value"], answers, config.future_value_weight)
        terms["future_value_baseline"] = Term(out["future_value_baseline"], answers, coef=0.0)
    terms |= _regularised(out["state"], config, seed)
    rows = batch["mask"].sum().float()
    padded = torch.full_like(rows, float(batch["mask"].numel()))
    return {**terms, "padding": Term(padded - rows, padded, coef=0.0)}


def counts(model: nn.Module, batch: Batch, seed: int) -> dict[str, Tensor]:
    """Return how many rows and values a batch hides, its answers and patients: each [], by term."""
    plain = unwrapped(model)
    context, hidden = plain.masks(batch, seed)
    found = {"latent": hidden.sum()}
    if plain.config.time_to_event_weight:
        head = plain.time_to_event
        moments = truth_after(batch, context, head).real.sum()
        found["time_to_event"] = moments.float() * len(head.codes)
    if plain.config.future_value_weight:
        found["future_value"] = values_of(batch, context, plain.future_value).asked.sum()
    if plain.config.value_weight:
        found["value"] = (dense(batch).observed & hidden.unsqueeze(-1)).sum()
    patients = torch.full_like(found["latent"], len(hidden))
    return found | dict.fromkeys(("isotropy", "variance", "covariance"), patients)


def contrast(predicted: Tensor, goal: Tensor) -> Tensor:
    """Return -log p of each hidden row's own state among those of all N, [N], of [N, D] each.

    Log-odds are cosines over a temperature (InfoNCE).
    """
    predicted, goal = F.normalize(predicted.float(), dim=-1), F.normalize(goal.float(), dim=-1)
    with torch.autocast(goal.device.type, enabled=False):
        alike = predicted @ goal.T / TEMPERATURE
    return F.cross_entropy(alike, torch.arange(len(goal), device=goal.device), reduction="none")


def needs_pairs(config: JEPAConfig) -> str | None:
    """Return the setting that compares patients of a batch, if there is one."""
    if config.latent_loss == "infonce":
        return "model.latent_loss=infonce"
    return f"model.regulariser={config.regulariser}" if config.regularised else None


def _regularised(state: Tensor, config: JEPAConfig, seed: int) -> Terms:
    if config.regulariser == "none":
        return {}
    weight = config.regulariser_weight
    weight = WEIGHTS[config.regulariser] if weight is None else weight
    count = state.new_full((), float(len(state)))
    if config.regulariser == "sigreg":
        return {"isotropy": Term(count * isotropy(state, seed), count, coef=weight)}
    variance, covariance = variance_and_covariance(state)
    return {
        "variance": Term(count * variance, count, coef=weight),
        "covariance": Term(count * covariance, count, coef=weight * COVARIANCE),
    }
