"""HCAT whole: tokens, what training hides of them, the imputer, the fusion, and what train fits.

B patients, M = 5 modalities, 512 wide, Z latent, 2 outcomes.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ehr_ray.errors import InputError
from ehr_ray.events.leakage import require_no_leak
from ehr_ray.events.modalities import WIDTH
from ehr_ray.events.options import MODALITIES
from ehr_ray.events.outcomes import censoring, step
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.fusion import EnhancedHCAT, Fused
from ehr_ray.families.hcat.imputer import AdvancedIterativeImputer, Imputed
from ehr_ray.families.hcat.tokenizer import Tokenizer, Tokens
from ehr_ray.family import Batch
from ehr_ray.nn.noise import combine, normal, uniform

NUM = len(MODALITIES)
KNOTS = 128
"""Days at which the curve of censoring is kept."""
DATA_BUFFERS = (
    "tokenizer.meaning",
    *("quality_center", "quality_scale", "token_mean", "token_scale", "positive_weight"),
    *("imputer.base.read", "imputer.base.write", "knots", "still_followed"),
)
"""What is made of the vocabulary, the outcomes' horizons or, by `fit_buffers`, of train: another
cohort's means, censoring or class weights would stand for this one's where nothing is fitted."""
_MASK, _DROP, _NOISE, _LATENT = 31, 32, 33, 34


class HCAT(nn.Module):
    """Imputation that reaches the prediction of two outcomes."""

    quality_center: Tensor
    quality_scale: Tensor
    token_mean: Tensor
    token_scale: Tensor
    positive_weight: Tensor
    knots: Tensor
    still_followed: Tensor

    def __init__(self, config: HCATConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.codes = vocabulary.codes
        self.tokenizer = Tokenizer(config, vocabulary)
        self.imputer = AdvancedIterativeImputer(config) if config.missing == "impute" else None
        self.fusion = EnhancedHCAT(config)
        self.register_buffer("quality_center", torch.zeros(NUM))
        self.register_buffer("quality_scale", torch.ones(NUM))
        self.register_buffer("token_mean", torch.zeros(NUM, WIDTH))
        self.register_buffer("token_scale", torch.ones(NUM, 1))
        self.register_buffer("positive_weight", torch.ones(2))
        knots = torch.stack([torch.linspace(0, o.horizon_days, KNOTS) for o in config.outcomes])
        self.register_buffer("knots", knots)
        self.register_buffer("still_followed", torch.ones(2, KNOTS))

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return what the loss compares.

        `logit` [B, 2], of training's hidden and noisy tokens or of all that are there; `recon`,
        `recon_mask`, `steps` (mean squared error and log-variance a step) and the latent, of tokens
        with some hidden; with a contrast `first` and `second` [B, 64]. Draws depend on (seed,
        patient) alone.
        """
        tokens = self.tokens(batch)
        out = self._view(tokens, combine(batch["subject_id"], seed), seed)
        if self.config.views == 2:
            again = combine(batch["subject_id"], seed, 2)
            other = self._view(tokens, again, seed + 1)
            out["second"] = other["first"]
            out["logit"] = torch.stack([out["logit"], other["logit"]])
        else:
            out["logit"] = out["logit"].unsqueeze(0)
        return out

    def tokens(self, batch: Batch) -> Tokens:
        """Return the tokens of a batch as they differ from the mean of train, and their quality so.

        A missing token is zeros, so the mean is what is known of it before anything is.
        """
        found: Tokens = self.tokenizer(batch)
        quality = (found.quality - self.quality_center) / self.quality_scale
        value = (found.value - self.token_mean) * found.present.unsqueeze(-1)
        return replace(found, value=value, quality=quality * found.present)

    def impute(self, seen: Tokens, key: Tensor) -> Imputed:
        """Return imputations, on the scale on which each modality has a mean square of 1 in train.

        So an error is an error in any modality; `token_scale` undoes it.
        """
        assert self.imputer is not None
        filled: Imputed = self.imputer(replace(seen, value=seen.value / self.token_scale), key)
        return filled

    def predict(self, tokens: Tokens) -> tuple[Fused, Imputed | None]:
        """Return predictions from the tokens as they are, imputing what is missing."""
        if self.imputer is None:
            return self.fusion(tokens, tokens.value, None), None
        key = tokens.value.new_zeros(tokens.value.shape[0], dtype=torch.int64)
        filled = self.impute(tokens, key)
        return self.fusion(tokens, filled.value * self.token_scale, filled.logvar), filled

    def hidden(self, present: Tensor, key: Tensor, seed: int, *, drop: bool) -> Tensor:
        """Return which `present` modalities are hidden, bool [B, M]; never all of a patient.

        A share is hidden to learn what it was; with `drop` modality dropout besides.
        """
        config = self.config
        place = torch.arange(NUM, device=key.device)
        chance = config.mask_ratio if self.imputer is not None else 0.0
        hide = uniform(combine(key, _MASK).unsqueeze(1), place) < chance
        if drop and config.moddrop_mode == "per_sample":
            dropped = uniform(combine(key, _DROP).unsqueeze(1), place) < config.moddrop
            hide |= dropped & (place > 0)  # never the first, clinical
        elif drop:
            draws = uniform(combine(torch.arange(2, device=key.device) + seed, _DROP))
            one = 1 + (draws[1] * (NUM - 1)).long().clamp(max=NUM - 2)
            hide |= (place == one) & (draws[0] < config.moddrop)
        hide &= present
        left = (present & ~hide).any(1, keepdim=True)
        return hide & left

    def _view(self, tokens: Tokens, key: Tensor, seed: int) -> dict[str, Tensor]:
        """Return one view's outputs; hidden tokens are imputed for the prediction in training."""
        hide = self.hidden(tokens.present, key, seed, drop=self.training)
        noisy = tokens
        if self.training and self.config.emb_noise:
            noise = normal(combine(key, _NOISE), NUM * WIDTH).view(tokens.value.shape)
            value = tokens.value + self.config.emb_noise * noise * tokens.present.unsqueeze(-1)
            noisy = replace(tokens, value=value)
        seen = noisy.only(~hide)
        out: dict[str, Tensor] = {}
        filled = None
        if self.imputer is not None:
            filled = self.impute(seen, combine(key, _LATENT))
            out |= _errors(filled, replace(tokens, value=tokens.value / self.token_scale), hide)
        if self.training:
            used = None if filled is None else filled.logvar
            value = seen.value if filled is None else filled.value * self.token_scale
            fused = self.fusion(seen, value, used)
        else:
            fused, _ = self.predict(tokens)
        out["logit"] = fused.logit
        if self.config.alpha_con:
            out["first"] = self.fusion.views(fused.embedding)
        return out

    def weights(self, batch: Batch) -> Tensor:
        """Return each row's weight for each outcome, 0 where the label is unknown, [B, 2]."""
        known = batch["label"] >= 0
        weight = torch.ones_like(batch["label"])
        if self.config.censoring_weight:
            horizon = self.knots[:, -1]
            until = torch.minimum(batch["days"], horizon)
            until = torch.where(batch["days"] < 0, torch.zeros_like(until), until)
            last = torch.searchsorted(self.knots, until.T.contiguous()).T  # first knot at or after
            place = (last - 1).clamp(0, KNOTS - 1)
            share = torch.gather(self.still_followed, 1, place.T).T
            # At most 20: of few that are followed to the end one would outweigh all others.
            weight = torch.where(batch["days"] < 0, weight, 1 / share.clamp(min=0.05))
        positive = torch.where(batch["label"] > 0, self.positive_weight, weight.new_ones(2))
        return weight * positive * known


def _errors(filled: Imputed, tokens: Tokens, hide: Tensor) -> dict[str, Tensor]:
    """Return mean squared errors a token: of visible ones as decoded, of hidden ones a step."""
    visible = tokens.present & ~hide
    steps = torch.stack([(value - tokens.value).square().mean(-1) for value, _ in filled.steps])
    return {
        "mu": filled.mu,
        "logvar_z": filled.logvar_z,
        "recon": (filled.recon - tokens.value).square().mean(-1),
        "visible": visible,
        "hidden": hide,
        "steps": steps,
        "steps_logvar": torch.stack([logvar for _, logvar in filled.steps]),
    }


@torch.no_grad()
def fit_buffers(model: HCAT, batch: Batch) -> None:
    """Fit on the rows of train, before the first step, what is not trained by gradients.

    Scale of quality, mean and scale of tokens, the linear imputation, the curve of censoring and
    class weights. Raises InputError where one column by itself tells an outcome, and where nobody
    has a modality, or an outcome.
    """
    config = model.config
    refuse_leaks(model, batch)
    found = model.tokenizer(batch)
    if not found.present.any():
        raise InputError(
            "train split: nobody has a modality; ingest --source hancock or modality-h5, or name "
            "their codes in model.codes, as configs/tiny/hcat.yaml does"
        )
    if (batch["days"] < 0).all():
        raise InputError(
            "train split: of nobody an outcome is known; name the codes of its events in "
            "model.survival.event and .end, or in those of model.recurrence"
        )
    there = found.present.float()
    count = there.sum(0).clamp(min=1)
    center = found.quality.sum(0) / count
    scale = (((found.quality - center).square() * there).sum(0) / count).sqrt()
    model.quality_center.copy_(center)
    # What hardly varies in train keeps its scale: over next to nothing it would be all noise.
    model.quality_scale.copy_(torch.where(scale > 1e-3, scale, torch.ones_like(scale)))
    mean = found.value.sum(0) / count.unsqueeze(-1)
    apart = ((found.value - mean).square().mean(-1) * there).sum(0) / count
    model.token_mean.copy_(mean)
    model.token_scale.copy_(torch.where(apart > 1e-6, apart.sqrt(), 1.0).unsqueeze(-1))
    if model.imputer is not None:
        tokens = model.tokens(batch)  # by the means and scales of above
        model.imputer.base.fit(tokens.value / model.token_scale, tokens.present)
    days = batch["days"].double().cpu().numpy()
    state, label = batch["state"].cpu().numpy(), batch["label"].cpu().numpy()
    for place, outcome in enumerate(config.outcomes):
        followed = days[:, place] >= 0
        curve = censoring(days[followed, place], state[followed, place], outcome)
        share = step(*curve, model.knots[place].cpu().numpy())
        model.still_followed[place] = torch.from_numpy(share).float()
        positive, negative = (label[:, place] == 1).sum(), (label[:, place] == 0).sum()
        if config.class_weight == "balanced" and positive and negative:
            model.positive_weight[place] = float(negative / positive)


def refuse_leaks(model: HCAT, batch: Batch) -> None:
    """Raise InputError naming a code whose value alone tells an outcome of these rows."""
    mean, count, _ = model.tokenizer.columns(batch)
    values = torch.where(count > 0, mean, torch.nan).cpu().numpy()
    layout = model.tokenizer.layout
    values[:, ~layout.valued] = (count > 0).cpu().numpy()[:, ~layout.valued]
    ids = np.flatnonzero(layout.modality >= 0)
    names = [model.codes[i] for i in ids]
    for place, outcome in enumerate(model.config.outcomes):
        label = batch["label"][:, place].cpu().numpy().astype(int)
        require_no_leak(values[:, ids], names, label, outcome.name)
