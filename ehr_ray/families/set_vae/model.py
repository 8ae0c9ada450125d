"""SetVAE: a hierarchical VAE on one set of observed and carried values.

M sets, N tokens, V variables, E embedding, R reduced, D width, Z latent, L levels, K memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.set_vae import augment, chunking
from ehr_ray.families.set_vae.attention import ISAB, MAB, Pooling
from ehr_ray.families.set_vae.augment import Keys, Perturbed
from ehr_ray.families.set_vae.composition import Composition
from ehr_ray.families.set_vae.config import SetConfig
from ehr_ray.families.set_vae.embedding import embedding_table, reduced
from ehr_ray.families.set_vae.loss import chamfer
from ehr_ray.family import Batch
from ehr_ray.nn.gaussian import sample
from ehr_ray.nn.noise import combine

AGE_SCALE = 8.0
"""log(1 + age) of two days in minutes, so that the age channel lies in [0, 1] there."""
LOGVAR_RANGE = (-10.0, 10.0)
_LATENT = 11  # what a draw is for; no other purpose of this family (`augment`) has the number


@dataclass(frozen=True)
class Posterior:
    """q(z|x) of each level: `mu` and `logvar` [L, M, Z]."""

    mu: Tensor
    logvar: Tensor


class SetVAE(nn.Module):
    """Encoder, latent hierarchy and set decoder.

    A token is its variable's direction u (a unit vector) and its value x. The encoder sees u * x
    and u apart, so that a value of zero is not a missing token and a hidden value keeps its
    identity; age, the carry flag and a learned embedding for a hidden value are channels beside
    them. The decoder makes one vector for each token from the latents and the token's identity, to
    be matched with u * x: the latent is spent on values, not on which variables there are. The
    directions are fixed: a reducer that is trained moves the target towards what is easy to decode.
    With `recomputed` a chunk of sets keeps its inputs alone for the gradient, however few there
    are, and is computed once more.
    """

    directions: Tensor
    noise_rows: Tensor
    recomputed = False

    def __init__(self, config: SetConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("directions", reduced(embedding_table(config, vocabulary), config))
        width, heads = config.width, config.heads
        self.embed_value = nn.Linear(config.reduced, width, bias=False)
        self.embed_variable = nn.Linear(config.reduced, width)
        self.embed_state = nn.Linear(3, width, bias=False)  # age, carried, hidden
        self.norm = nn.LayerNorm(width)
        self.encoder = nn.ModuleList(
            ISAB(width, heads, config.inducing) for _ in range(config.levels)
        )
        self.pooling = nn.ModuleList(Pooling(width, heads) for _ in range(config.levels))
        self.posterior = nn.ModuleList(
            nn.Linear(2 * width, 2 * config.latent) for _ in range(config.levels)
        )
        self.query = nn.Linear(config.reduced, width)
        self.unfold = nn.ModuleList(
            nn.Linear(config.latent, config.memory * width) for _ in range(config.levels)
        )
        self.read = nn.ModuleList(MAB(width, heads) for _ in range(config.levels))
        self.project = nn.ModuleList(
            nn.Linear(config.reduced, config.latent) for _ in range(config.levels)
        )
        last = nn.Linear(width, config.reduced)
        self.out = nn.Sequential(nn.LayerNorm(width), last)
        with torch.no_grad():  # start near zero, where the targets are, not at vectors of norm 10
            last.weight.mul_(0.1)
        if config.composition_weight:
            latents = config.levels * config.latent
            self.composition = Composition(latents, config.reduced, width)
        # Of a fixed seed, so that no checkpoint needs to hold them.
        rows = torch.randn(augment.NOISE_ROWS, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise_rows", rows, persistent=False)

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return what the loss adds up, set by set.

        `recon` and `composition` [M], `mu` and `logvar` [L, M, Z]; `padding` and
        `padded`, tokens computed in vain and in all. Sets of like size are computed together.
        """
        pieces = chunking.by_size(batch, *self.config.chunk_limits)
        keys = augment.keys_of(batch, seed)
        seen = self.perturbed(batch, keys, seed) if self.training else None
        rows = augment.query_rows(keys) if self._decoder_noise else None
        parts = [
            chunking.bounded(
                pieces,
                self._measured,
                chunking.chunk(batch, index, width),
                keys.sets[index],
                None if seen is None else seen.chunk(index, width),
                None if rows is None else rows[index, :width],
                again=self.recomputed,
            )
            for index, width in pieces
        ]
        recon, composition, mu, logvar = (
            chunking.joined(list(column), pieces.indices) for column in zip(*parts, strict=True)
        )
        padded = chunking.padded_tokens(batch, pieces)
        return {
            "recon": recon,
            "composition": composition,
            "mu": mu.transpose(0, 1),
            "logvar": logvar.transpose(0, 1),
            "padding": padded - batch["mask"].sum(),
            "padded": padded,
        }

    def compared(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return what the loss compares.

        `decoded` and `target` [M, N, R], `mask` [M, N], `composition` [M] (0 without its weight),
        `mu` and `logvar` [L, M, Z]. In training
        mode values are hidden and shaken first, the target is not; in evaluation mode nothing is.
        Latents are sampled in both, from noise that is a function of (seed, patient, set).
        """
        keys = augment.keys_of(batch, seed)
        seen = self.perturbed(batch, keys, seed) if self.training else None
        rows = augment.query_rows(keys) if self._decoder_noise else None
        return self._compared(batch, keys.sets, seen, rows)

    def perturbed(self, batch: Batch, keys: Keys, seed: int) -> Perturbed:
        """Return what the encoder sees of a batch in training."""
        return augment.perturbed(batch, keys, self.directions, self.config, seed)

    @property
    def _decoder_noise(self) -> float:
        config = self.config
        return config.decoder_noise if self.training else config.eval_decoder_noise

    def _compared(
        self, batch: Batch, key: Tensor, seen: Perturbed | None, rows: Tensor | None
    ) -> dict[str, Tensor]:
        target = self.target(batch)
        posterior = self.encode(batch, seen)
        level = torch.arange(len(posterior.mu), device=key.device).unsqueeze(1)
        latents = list(
            sample(posterior.mu, posterior.logvar, combine(key, _LATENT, level)).unbind(0)
        )
        decoded = self.decode(latents, batch["code"], rows, self._decoder_noise)
        return {
            "decoded": decoded,
            "target": target,
            "mask": batch["mask"],
            "composition": self.compositions(torch.cat(latents, 1), batch),
            "mu": posterior.mu,
            "logvar": posterior.logvar,
        }

    def _measured(
        self, part: Batch, key: Tensor, seen: Perturbed | None, rows: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the error and the composition's [M], the posterior [M, L, Z] of a chunk's sets."""
        out = self._compared(part, key, seen, rows)
        recon = chamfer(out["decoded"], out["target"], out["mask"], self.config)
        mu, logvar = out["mu"].transpose(0, 1), out["logvar"].transpose(0, 1)
        return recon, out["composition"], mu, logvar

    def compositions(self, latent: Tensor, batch: Batch) -> Tensor:
        """Return -log p(the variables of each set | latent [M, L * Z]), [M]; 0 without its weight.

        An empty set has no composition to judge.
        """
        if not self.config.composition_weight:
            return latent.new_zeros(len(latent), dtype=torch.float32)
        mask = batch["mask"]
        return self.composition(latent, self.directions, batch["code"], mask) * mask.any(1)

    def target(self, batch: Batch) -> Tensor:
        """Return u * x of each token, [M, N, R]."""
        return F.embedding(batch["code"], self.directions) * batch["value"].unsqueeze(-1)

    def encode(
        self,
        batch: Batch,
        seen: Perturbed | None = None,
        hidden: Tensor | None = None,
    ) -> Posterior:
        """Return the posterior of each set, as it is `seen` in training.

        The encoder does not see `hidden` [M, N] values.
        """
        value, mask, directions = batch["value"], batch["mask"], self.directions
        if seen is not None:
            value, hidden, directions = seen.value, seen.hidden, seen.directions
        hidden = torch.zeros_like(mask) if hidden is None else hidden
        value = value.masked_fill(hidden, 0.0)
        age = torch.log1p(batch["age"]) / AGE_SCALE
        state = torch.stack([age, batch["carried"].float(), hidden.float()], -1)
        # Both projections are made once per variable and gathered: V rows instead of M * N.
        by_value, by_name = self.embed_value(directions), self.embed_variable(directions)
        code = batch["code"]
        tokens = F.embedding(code, by_value) * value.unsqueeze(-1) + F.embedding(code, by_name)
        # Beside attention the posterior sees a plain sum over the set: a linear code of its values.
        # Over the root of its size: a sum of many has the spread of a sum of few.
        plain = (tokens * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1).sqrt()
        tokens = _half(F.gelu(self.norm(tokens + self.embed_state(state))))
        attend = _never_empty(mask)
        mus, logvars = [], []
        for block, pooling, head in zip(self.encoder, self.pooling, self.posterior, strict=True):
            tokens = block(tokens, attend)
            pooled = torch.cat([pooling(tokens, attend), plain], -1)
            mu, logvar = head(pooled).float().chunk(2, -1)
            mus.append(mu)
            logvars.append(logvar.clamp(*LOGVAR_RANGE))
        return Posterior(torch.stack(mus), torch.stack(logvars))

    def decode(
        self, latents: list[Tensor], code: Tensor, rows: Tensor | None = None, noise: float = 0.0
    ) -> Tensor:
        """Return [M, N, R]: a vector for each variable of `code` [M, N], from level L down to 1.

        `rows` [M, N] of `augment.query_rows` and `noise` shake the queries by N(0, noise).
        """
        queries = F.embedding(code, self.query(self.directions))
        if rows is not None:
            queries = queries + noise * F.embedding(rows, self.noise_rows)
        queries, value = _half(queries), self.directions.new_zeros(code.shape)
        for level in reversed(range(self.config.levels)):
            memory = self.unfold[level](latents[level]).unflatten(-1, (self.config.memory, -1))
            queries = self.read[level](queries, memory)
            value = value + self._readout(level, latents[level], code)
        directions = F.embedding(code, self.directions)
        return self.out(queries).float() + directions * value.unsqueeze(-1)

    def _readout(self, level: int, latent: Tensor, code: Tensor) -> Tensor:
        """Return [M, N]: each variable's own projection of a latent [M, Z], as its value.

        In float32: it is to be the value itself, and autocast would round both factors.
        """
        with torch.autocast(latent.device.type, enabled=False):
            projection = F.embedding(code, self.project[level](self.directions))
            return torch.einsum("mnz,mz->mn", projection, latent.float())


def _half(tokens: Tensor) -> Tensor:
    """Keep the residual stream in autocast's type: on CPU memory traffic is what is slow."""
    device = tokens.device.type
    return (
        tokens.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tokens
    )


def _never_empty(mask: Tensor) -> Tensor:
    """Let a set without tokens attend to its padding: attention over nothing is not a number."""
    return mask | ~mask.any(1, keepdim=True)
