"""SetVAE: a hierarchical VAE on one set of observed and carried values.

M sets, N tokens, V variables, E embedding, R reduced, D width, Z latent, L levels, K memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.set_vae import perturb
from ehr_ray.families.set_vae.attention import ISAB, MAB, Pooling
from ehr_ray.families.set_vae.config import SetVAEConfig
from ehr_ray.families.set_vae.embedding import embedding_table
from ehr_ray.family import Batch
from ehr_ray.nn.gaussian import sample
from ehr_ray.nn.noise import combine

AGE_SCALE = 8.0
"""log(1 + age) of two days in minutes, so that the age channel lies in [0, 1] there."""
LOGVAR_RANGE = (-10.0, 10.0)
NOISE_ROWS = 1 << 14
_LATENT, _SLOT = 11, 12


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
    them. The decoder makes as many vectors as the set has tokens, to be matched with u * x.
    """

    def __init__(self, config: SetVAEConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        table = embedding_table(config, vocabulary)
        self.register_buffer("table", table)
        width, heads = config.width, config.heads
        self.reduce = nn.Linear(table.shape[1], config.reduced)
        self.embed_value = nn.Linear(config.reduced, width, bias=False)
        self.embed_variable = nn.Linear(config.reduced, width)
        self.embed_state = nn.Linear(3, width, bias=False)  # age, carried, hidden
        self.norm = nn.LayerNorm(width)
        self.encoder = nn.ModuleList(
            ISAB(width, heads, config.inducing) for _ in range(config.levels)
        )
        self.pooling = nn.ModuleList(Pooling(width, heads) for _ in range(config.levels))
        self.posterior = nn.ModuleList(
            nn.Linear(width, 2 * config.latent) for _ in range(config.levels)
        )
        self.slots = nn.Parameter(torch.randn(_num_slots(config, vocabulary), width))
        self.unfold = nn.ModuleList(
            nn.Linear(config.latent, config.memory * width) for _ in range(config.levels)
        )
        self.read = nn.ModuleList(MAB(width, heads) for _ in range(config.levels))
        self.mix = ISAB(width, heads, config.inducing)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.reduced))
        with torch.no_grad():  # start near zero, where the targets are, not at vectors of norm 10
            self.out[1].weight.mul_(0.1)
        rows = torch.randn(NOISE_ROWS, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("noise_rows", rows, persistent=False)

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return what the loss compares.

        `decoded` and `target` [M, N, R], `mask` [M, N], `mu` and `logvar` [L, M, Z]. In training
        mode values are hidden and shaken first, the target is not; in evaluation mode nothing is.
        Latents are sampled in both, from noise that is a function of (seed, patient, set).
        """
        directions = self.directions()
        target = directions.detach()[batch["code"]] * batch["value"].unsqueeze(-1)
        posterior = self.encode(batch, directions, seed if self.training else None)
        key = perturb.set_key(batch, seed)
        latents = [
            sample(mu, logvar, combine(key, _LATENT, level))
            for level, (mu, logvar) in enumerate(zip(posterior.mu, posterior.logvar, strict=True))
        ]
        noise = self.config.decoder_noise if self.training else self.config.eval_decoder_noise
        decoded = self.decode(latents, batch["mask"], key if noise else None, noise)
        return {
            "decoded": decoded,
            "target": target,
            "mask": batch["mask"],
            "mu": posterior.mu,
            "logvar": posterior.logvar,
        }

    def directions(self) -> Tensor:
        """Return the unit vector of each variable, [V, R]."""
        return F.normalize(self.reduce(self.table).float(), dim=-1)

    def encode(
        self,
        batch: Batch,
        directions: Tensor,
        perturb_seed: int | None = None,
        hidden: Tensor | None = None,
    ) -> Posterior:
        """Return the posterior of each set; the encoder does not see `hidden` [M, N] values."""
        value, mask = batch["value"], batch["mask"]
        if perturb_seed is not None:
            config = self.config
            hidden = perturb.hidden_tokens(batch, config, perturb_seed)
            value = value + perturb.value_noise(batch, config.val_noise_std, perturb_seed)
            directions = perturb.jitter(directions, config.dir_noise_std, perturb_seed)
        hidden = torch.zeros_like(mask) if hidden is None else hidden
        value = value.masked_fill(hidden, 0.0)
        age = torch.log1p(batch["age"]) / AGE_SCALE
        state = torch.stack([age, batch["carried"].float(), hidden.float()], -1)
        # Both projections are made once per variable and gathered: V rows instead of M * N.
        by_value, by_name = self.embed_value(directions), self.embed_variable(directions)
        code = batch["code"]
        tokens = F.embedding(code, by_value) * value.unsqueeze(-1) + F.embedding(code, by_name)
        tokens = _half(F.gelu(self.norm(tokens + self.embed_state(state))))
        attend = _never_empty(mask)
        mus, logvars = [], []
        for block, pooling, head in zip(self.encoder, self.pooling, self.posterior, strict=True):
            tokens = block(tokens, attend)
            mu, logvar = head(pooling(tokens, attend)).float().chunk(2, -1)
            mus.append(mu)
            logvars.append(logvar.clamp(*LOGVAR_RANGE))
        return Posterior(torch.stack(mus), torch.stack(logvars))

    def decode(
        self, latents: list[Tensor], mask: Tensor, key: Tensor | None = None, noise: float = 0.0
    ) -> Tensor:
        """Return [M, N, R]: one vector for each token of a set, in no order, from level L to 1."""
        num_sets, num_slots = mask.shape
        slot = torch.arange(num_slots, device=mask.device)
        slots = self.slots[slot % len(self.slots)].expand(num_sets, -1, -1)
        if key is not None:
            # A normal draw per number would cost more than the decoder: rows are drawn instead.
            row = combine(key[:, None], slot, _SLOT) & (NOISE_ROWS - 1)
            slots = slots + noise * F.embedding(row, self.noise_rows)
        slots = _half(slots)
        attend = _never_empty(mask)
        for level in reversed(range(self.config.levels)):
            memory = self.unfold[level](latents[level]).unflatten(-1, (self.config.memory, -1))
            slots = self.read[level](slots, memory)
        return self.out(self.mix(slots, attend)).float()


def _half(tokens: Tensor) -> Tensor:
    """Keep the residual stream in autocast's type: on CPU memory traffic is what is slow."""
    device = tokens.device.type
    return (
        tokens.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tokens
    )


def _never_empty(mask: Tensor) -> Tensor:
    """Let a set without tokens attend to its padding: attention over nothing is not a number."""
    return mask | ~mask.any(1, keepdim=True)


def _num_slots(config: SetVAEConfig, vocabulary: Vocabulary) -> int:
    return max(1, min(config.max_slots, len(vocabulary)))
