"""The vitals VAE: channels of a grid to a latent, the latent to curves over all hours.

B patients, H hours, V vitals, Z latent, R branches.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ehr_ray.events.grid import scales
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.vitals_vae.config import VitalsVAEConfig
from ehr_ray.families.vitals_vae.conv import ConvDecoder, ConvEncoder
from ehr_ray.families.vitals_vae.lstm import LSTMDecoder, LSTMEncoder
from ehr_ray.families.vitals_vae.masking import VALIDATION_HIDE, channels, hidden_cells
from ehr_ray.families.vitals_vae.quantise import Quantiser
from ehr_ray.family import Batch, Scheduled
from ehr_ray.nn.gaussian import sample
from ehr_ray.nn.noise import combine, uniform

LOGVAR_RANGE = (-10.0, 4.0)
NOISE_RANGE = (math.log(0.05), math.log(3.0))
"""Logarithms, of z-scores: without a least noise a likelihood that learns it has no maximum."""
_LATENT, _FROM_MEAN = 17, 18


@dataclass(frozen=True)
class Posterior:
    """What the encoder says: a Gaussian, or codes.

    `mu` [B, Z] and `logvar` [B, Z] (None for codes); `codes` [B, G] and the two errors [B] of the
    quantiser (None for a Gaussian).
    """

    mu: Tensor
    logvar: Tensor | None = None
    codes: Tensor | None = None
    to_members: Tensor | None = None
    to_codes: Tensor | None = None

    def whole_mean(self, evidence: float) -> Tensor:
        """Return the posterior mean under the likelihood of weight 1, [B, Z]; codes as they are.

        With the prior N(0, 1), a posterior N(mu, s^2) made of `evidence` e times the likelihood
        took the precision 1 / s^2 - 1 from it, about the centre mu / (1 - s^2). The whole
        likelihood has 1 / e times that precision; exact where it is Gaussian and linear in z.
        """
        if self.logvar is None:
            return self.mu
        variance = self.logvar.exp().clamp(max=1)  # wider than the prior: nothing was seen
        # mu / (1 - s^2), times p / (e + p) with p = 1 / s^2 - 1: mu itself where e is 1.
        return self.mu / (1 - (1 - evidence) * variance)


def meanings(config: VitalsVAEConfig) -> dict[str, list[str]]:
    """Return what the inputs are: weights go by a vital sign's place."""
    return {"model.vitals": [vital.name for vital in config.vitals]}


def held(model: "VitalsVAE", scheduled: Scheduled) -> list[nn.Parameter]:
    """Return the encoder's parameters where every patient is decoded from the posterior mean.

    Nothing is learned of them then, and a gradient of zero would still let decay and moments move
    them away from under the decoder.
    """
    config = model.config
    gaussian = config.objective == "elbo" and config.arch != "vq"
    if not gaussian or scheduled["mean_share"] < 1:
        return []
    return [*model.encoder.parameters(), *model.head.parameters()]


class VitalsVAE(nn.Module):
    """Encoder, latent and decoder of hourly vital signs; the architecture is the config's."""

    carry_hours: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, config: VitalsVAEConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.evidence = 1.0 if config.objective == "published" else config.evidence
        """Weight the likelihood was trained with."""
        recurrent = config.arch == "lstm"
        self.encoder: nn.Module = LSTMEncoder(config) if recurrent else ConvEncoder(config)
        width = config.embedding_width
        discrete = config.arch == "vq"
        self.head = nn.Linear(self.encoder.width, width if discrete else 2 * width)
        self.quantiser = Quantiser(config.codebook, config.code_width) if discrete else None
        decoder = LSTMDecoder if recurrent else ConvDecoder
        self.decoder: nn.Module = decoder(config, width)
        noise = torch.full((config.num_vitals,), math.log(config.noise))
        if config.learn_noise and config.objective == "elbo":
            self.log_noise: Tensor = nn.Parameter(noise)
        else:
            self.register_buffer("log_noise", noise, persistent=False)
        carry = torch.tensor([vital.carry_hours for vital in config.vitals])
        self.register_buffer("carry_hours", carry, persistent=False)
        # Recomputed from the vocabulary, so that weights can start a model of another cohort.
        centre, spread = (torch.from_numpy(x).float() for x in scales(config.vitals, vocabulary))
        self.register_buffer("centre", centre, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, batch: Batch, seed: int, mean_share: float = 0.0) -> dict[str, Tensor]:
        """Return what the loss compares: `merged` [B, H, V], `branches` [R, B, H, V] and the rest.

        Cells are hidden from the encoder by `seed`, in training from a landmark on as well; the
        latent is sampled, from noise that is a function of (seed, patient). Of a share of patients
        the posterior mean is decoded instead: of these the decoder alone learns (`from_mean` [B]).
        """
        config = self.config
        if config.objective == "published":
            hidden = torch.zeros_like(batch["observed"])
        else:
            share = config.hide if self.training else VALIDATION_HIDE
            hidden = hidden_cells(batch, config, seed, cut=self.training, share=share)
        posterior = self.encode(batch, hidden)
        z = posterior.mu
        if posterior.logvar is not None:
            z = sample(z, posterior.logvar, combine(batch["subject_id"], seed, _LATENT))
        from_mean = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        if posterior.logvar is not None and config.objective == "elbo":
            from_mean = uniform(batch["subject_id"], seed, _FROM_MEAN) < mean_share
            mean = posterior.whole_mean(self.evidence).detach()
            z = torch.where(from_mean.unsqueeze(1), mean, z)
        merged, branches = self.decoder(z)
        out = {
            "merged": merged,
            "branches": branches,
            "from_mean": from_mean,
            "hidden": hidden,
            "log_noise": self.log_noise.clamp(*NOISE_RANGE),
        }
        return out | {k: v for k, v in vars(posterior).items() if v is not None}

    def encode(self, batch: Batch, hidden: Tensor | None = None) -> Posterior:
        """Return the posterior of each patient; the encoder does not see `hidden` [B, H, V]."""
        observed = batch["observed"] if hidden is None else batch["observed"] & ~hidden
        value = batch["value"] * observed
        seen = channels(value, observed, self.carry_hours, self.config.first_hour)
        found = self.head(self.encoder(seen)).float()
        if self.quantiser is None:
            mu, logvar = found.chunk(2, -1)
            return Posterior(mu, logvar.clamp(*LOGVAR_RANGE))
        config = self.config
        groups = found.unflatten(1, (config.code_groups, config.code_width))
        chosen, codes, to_members, to_codes = self.quantiser(groups)
        return Posterior(chosen.flatten(1), None, codes, to_members, to_codes)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return merged curves [B, H, V] and the branches' [R, B, H, V], as z-scores."""
        merged, branches = self.decoder(z)
        return merged.float(), branches.float()

    def in_units(self, curves: Tensor) -> Tensor:
        """Return z-scores [..., V] in the vitals' own units."""
        return curves * self.spread + self.centre
