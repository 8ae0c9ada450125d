"""Imputation of missing tokens: a multi-modal VAE, then refinement by attention over all tokens.

B patients, M = 5 modalities, 512 wide, C code width, Z latent, K refinements.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ehr_ray.events.modalities import WIDTH
from ehr_ray.events.options import MODALITIES
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.tokenizer import Tokens
from ehr_ray.nn.attention import attend
from ehr_ray.nn.gaussian import sample
from ehr_ray.nn.transformer import Block

NUM = len(MODALITIES)
LOGVAR_RANGE = (-6.0, 3.0)
MAX_HEADS = 4
RANK = 16
"""Rank of the linear imputation of a modality."""
PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Of the ridge, a patient; tokens have 512 numbers with a mean square of 1."""
FEWEST = 20
"""Patients without which a modality is not imputed linearly."""


@dataclass(frozen=True)
class Imputed:
    """What the imputer makes of the visible modalities.

    `value` [B, M, 512]: visible tokens as they are, others imputed; `logvar` [B, M]: log of the
    imputation's expected squared error a number; `mu`, `logvar_z` [B, Z]: the joint latent;
    `recon` [B, M, 512]: every token as decoded; `steps`: (tokens, logvar) after the VAE and each
    refinement, with imputations in the places of all tokens that are not visible.
    """

    value: Tensor
    logvar: Tensor
    mu: Tensor
    logvar_z: Tensor
    recon: Tensor
    steps: tuple[tuple[Tensor, Tensor], ...]


class MultiModalVAE(nn.Module):
    """Modalities encoded at several scales, joined to one latent, each decoded from it."""

    def __init__(self, config: HCATConfig) -> None:
        super().__init__()
        size = config.size
        widths = [max(4, size.vae_width >> s) for s in range(config.scales)]
        codes = [max(4, size.latent >> s) for s in range(config.scales)]
        self.width = -(-sum(codes) // MAX_HEADS) * MAX_HEADS
        codes[0] += self.width - sum(codes)
        self.encoders = nn.ModuleList(
            nn.ModuleList(
                _encoder(h, c, config.dropout) for h, c in zip(widths, codes, strict=True)
            )
            for _ in MODALITIES
        )
        self.norm = nn.LayerNorm(self.width)
        self.query_key_value = nn.Linear(self.width, 3 * self.width)
        self.mix = nn.Linear(self.width, self.width)
        self.trust = nn.Linear(NUM, NUM)
        self.score = nn.Linear(self.width, 1) if config.joint == "attention" else None
        self.posterior = nn.Linear(self.width, 2 * size.latent)
        self.decoders = nn.ModuleList(
            _decoder(size.latent, size.vae_width, config.dropout) for _ in MODALITIES
        )
        self.uncertainty = nn.Linear(size.latent, NUM)

    def forward(self, seen: Tokens, key: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return `mu`, `logvar` [B, Z], tokens [B, M, 512] and their log-variance [B, M].

        The latent is sampled in training, by `key` [B]; its mean is decoded otherwise.
        """
        own = []
        for m, scales in enumerate(self.encoders):
            assert isinstance(scales, nn.ModuleList)
            own.append(torch.cat([scale(seen.value[:, m]) for scale in scales], -1))
        codes = torch.stack(own, 1)
        codes = codes + self._across(codes, seen.present)
        mu, logvar = self._joint(codes, seen)
        z = sample(mu, logvar, key) if self.training else mu
        recon = torch.stack([decoder(z) for decoder in self.decoders], 1)
        return mu, logvar, recon, self.uncertainty(z).clamp(*LOGVAR_RANGE)

    def _across(self, codes: Tensor, present: Tensor) -> Tensor:
        """Let each modality attend to those that are there, and to itself."""
        split = self.query_key_value(self.norm(codes)).unflatten(-1, (3, MAX_HEADS, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        itself = torch.eye(NUM, dtype=torch.bool, device=codes.device)
        mask = (present.unsqueeze(1) | itself).unsqueeze(1)
        found = attend(query, key, value, mask).transpose(1, 2).flatten(2)
        mixed: Tensor = self.mix(found.to(codes.dtype))
        return mixed

    def _joint(self, codes: Tensor, seen: Tokens) -> tuple[Tensor, Tensor]:
        """Return the latent of the modalities that are there; the prior where there is none.

        An expert counts less where its modality's quality is poor.
        """
        trust = torch.sigmoid(2.0 + self.trust(seen.quality)) * seen.present
        if self.score is not None:
            weight = self.score(codes).squeeze(-1).exp() * trust
            share = weight / (1 + weight.sum(1, keepdim=True))
            pooled = (codes * share.unsqueeze(-1)).sum(1)
            mu, logvar = self.posterior(pooled).chunk(2, -1)
            return mu, logvar.clamp(*LOGVAR_RANGE)
        mu, logvar = self.posterior(codes).chunk(2, -1)
        precision = torch.exp(-logvar.clamp(*LOGVAR_RANGE)) * trust.unsqueeze(-1)
        total = 1 + precision.sum(1)  # the prior N(0, 1) is one of the experts
        return (precision * mu).sum(1) / total, -torch.log(total)


class LinearImputer(nn.Module):
    """Ridge regression of each token on the others, of low rank, fitted on train in closed form.

    A few hundred patients tell little of one modality by another, and gradients find less of it.
    """

    read: Tensor
    write: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("read", torch.zeros(NUM, NUM * WIDTH, RANK))
        self.register_buffer("write", torch.zeros(NUM, RANK, WIDTH))

    def forward(self, value: Tensor) -> Tensor:
        """Return each token as told by the others, [B, M, 512]; zeros before it is fitted."""
        with torch.autocast(value.device.type, enabled=False):  # as it was fitted
            codes = torch.einsum("bi,mir->bmr", value.float().flatten(1), self.read)
            return torch.einsum("bmr,mrw->bmw", codes, self.write)

    @torch.no_grad()
    def fit(self, value: Tensor, present: Tensor) -> None:
        """Fit on tokens [N, M, 512], zeros where missing; the penalty has the least error by
        leaving each patient out (Golub et al. 1979), and may keep nothing at all.
        """  # noqa: D205
        for place in range(NUM):
            rows = present[:, place] & (present.sum(1) > 1)
            if rows.sum() < FEWEST:
                continue
            inputs = value[rows].double()
            target = inputs[:, place].clone()
            inputs[:, place] = 0
            x = inputs.flatten(1)
            level, basis = torch.linalg.eigh(x @ x.T)
            turned = basis.T @ target
            best, error = None, target.square().sum()
            for penalty in PENALTIES:
                kept = level.clamp(min=0) / (level.clamp(min=0) + penalty * len(x))
                left = target - basis @ (kept.unsqueeze(1) * turned)
                lever = (basis.square() @ kept).clamp(max=0.999)
                found = (left / (1 - lever).unsqueeze(1)).square().sum()
                if found < error:
                    best, error = penalty, found
            if best is None:
                continue
            dual = basis @ (turned / (level.clamp(min=0) + best * len(x)).unsqueeze(1))
            weight = x.T @ dual
            _, _, right = torch.linalg.svd(x @ weight, full_matrices=False)
            direction = right[:RANK]
            self.read[place, :, : len(direction)] = (weight @ direction.T).float()
            self.write[place, : len(direction)] = direction.float()


class AdvancedIterativeImputer(nn.Module):
    """Imputations by a linear map and a VAE, refined step by step with a confidence each."""

    def __init__(self, config: HCATConfig) -> None:
        super().__init__()
        width = config.size.vae_width
        self.vae = MultiModalVAE(config)
        self.base = LinearImputer()
        self.share = nn.Parameter(torch.full((NUM, 1), 0.1))
        self.modality = nn.Parameter(torch.randn(NUM, width) * 0.02)
        self.imputed = nn.Parameter(torch.randn(width) * 0.02)
        steps = range(config.impute_iterations)
        heads = next(h for h in (MAX_HEADS, 2, 1) if width % h == 0)
        self.read = nn.Linear(WIDTH, width) if steps else None
        self.blocks = nn.ModuleList(Block(width, heads, config.dropout) for _ in steps)
        self.change = nn.ModuleList(_small(width, WIDTH) for _ in steps)
        self.confidence = nn.ModuleList(nn.Linear(width, 1) for _ in steps)
        self.relief = nn.Parameter(torch.zeros(len(steps))) if steps else None
        if not steps:
            self.modality.requires_grad_(False)
            self.imputed.requires_grad_(False)

    def forward(self, seen: Tokens, key: Tensor) -> Imputed:
        """Return the imputations of what is not in `seen`; `key` [B] keys the latent's noise."""
        mu, logvar_z, recon, logvar = self.vae(seen, key)
        absent = ~seen.present.unsqueeze(-1)
        first = self.base(seen.value) + self.share * recon
        current = torch.where(absent, first, seen.value)
        steps = [(current, logvar)]
        for place, block in enumerate(self.blocks):
            assert self.read is not None
            assert self.relief is not None
            hidden = self.read(current) + self.modality + absent * self.imputed
            hidden = block(hidden, None, False, None)
            sure = torch.sigmoid(self.confidence[place](hidden))
            current = torch.where(absent, current + sure * self.change[place](hidden), current)
            lower = torch.nn.functional.softplus(self.relief[place]) * sure.squeeze(-1)
            logvar = (logvar - lower + math.log(2) / 2).clamp(*LOGVAR_RANGE)
            steps.append((current, logvar))
        return Imputed(current, logvar, mu, logvar_z, recon, tuple(steps))


def _encoder(width: int, code: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, width),
        nn.LayerNorm(width),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(width, code),
    )


def _decoder(latent: int, width: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(latent, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, WIDTH)
    )


def _small(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer
