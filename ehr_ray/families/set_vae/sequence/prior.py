"""p(z_t | z_<t, dt_t): what is expected of a set before it is seen.

B patients, S sets, D latent, W width. A step knows the sets before it and its own time, never its
own set; step S, one past the last set, is the state that has seen them all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ehr_ray.families.set_vae.sequence.config import SeqSetVAEConfig
from ehr_ray.nn.transformer import Block, through, wave_angles

Product = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(mu_q, logvar_q, mu_p, logvar_p, gap) to the posterior's mean and log-variance."""
LOGVAR_RANGE = (-8.0, 4.0)
FIRST_EDGE, LAST_EDGE = 0.5, 1440.0
"""Minutes: edges of the first and last bucket of time gaps."""
WAVES = 16
SHORTEST, LONGEST = 60.0, 60 * 24 * 365.0
"""Minutes: periods of the waves that tell the time since the origin."""


@dataclass(frozen=True)
class Steps:
    """What the prior says: `mu`, `logvar` and the posterior's [B, S, D]; `state` [B, S + 1, W]."""

    mu: Tensor
    logvar: Tensor
    posterior_mu: Tensor
    posterior_logvar: Tensor
    state: Tensor


class Clock(nn.Module):
    """The gap since the set before, by log-spaced bucket, and the time since the origin."""

    edges: Tensor
    period: Tensor

    def __init__(self, buckets: int, width: int) -> None:
        super().__init__()
        low, high = torch.tensor(FIRST_EDGE).log1p(), torch.tensor(LAST_EDGE).log1p()
        edges = torch.linspace(float(low), float(high), buckets - 1).expm1()
        self.register_buffer("edges", edges, persistent=False)
        period = SHORTEST * (LONGEST / SHORTEST) ** torch.linspace(0, 1, WAVES)
        self.register_buffer("period", period, persistent=False)
        self.gap = nn.Embedding(buckets, width)
        self.elapsed = nn.Linear(2 * WAVES + 1, width)

    def forward(self, gap: Tensor, minute: Tensor) -> Tensor:
        """Return [B, S, W] of minutes since the set before and since the origin, both [B, S]."""
        angle = wave_angles(minute, self.period)
        waves = [angle.sin(), angle.cos(), torch.log1p(minute.float() / 60).unsqueeze(-1)]
        bucket = torch.bucketize(gap.contiguous(), self.edges, right=True)
        expected: Tensor = self.gap(bucket) + self.elapsed(torch.cat(waves, -1))
        return expected


class Expectation(nn.Module):
    """A state to a Gaussian over the next latent: a share of the last one, and a correction."""

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, 3 * latent)
        with torch.no_grad():  # starts at half of the last latent, with the variance of N(0, 1)
            self.out.weight.mul_(0.01)
            self.out.bias.zero_()

    def forward(self, state: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance [..., D] from the state [..., W] and z_{t-1} [..., D]."""
        hidden = nn.functional.gelu(self.hidden(self.norm(state)))
        change, logvar, kept = self.out(hidden).float().chunk(3, -1)
        return torch.sigmoid(kept) * last + change, logvar.clamp(*LOGVAR_RANGE)


class TransformerPrior(nn.Module):
    """Causal attention over the sets before: every step of a stay at once.

    The past enters by the means of its set posteriors, q(z|x), not by samples of the product:
    those would need every earlier step's prior first. The bound stays one, on each set given the
    sets before it: log p(x_t | x_<t) >= E[log p(x_t | z_t)] - KL(q(z_t | x_<=t) || p(z_t | x_<t)).
    """

    def __init__(self, config: SeqSetVAEConfig, latent: int) -> None:
        super().__init__()
        width = config.prior_width
        self.clock = Clock(config.time_buckets, width)
        self.past = nn.Linear(latent, width)
        self.start = nn.Parameter(torch.randn(width) / width**0.5)
        self.blocks = nn.ModuleList(
            Block(width, config.prior_heads, 0.0) for _ in range(config.prior_layers)
        )
        self.expect = Expectation(width, latent)

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        gap: Tensor,
        minute: Tensor,
        product: Product,
        mask: Tensor | None = None,
        real: int | None = None,
    ) -> Steps:
        """Return what is expected; `mu`, `logvar` [B, S, D], `gap` and `minute` [B, S + 1].

        `mask` [B, S + 1] are the steps of each stay and the one past it, `real` of them; None: all.
        """
        seen = self.past(mu)
        first = self.start.to(seen.dtype).expand(len(mu), 1, -1)
        state = torch.cat([first, seen], 1) + self.clock(gap, minute)
        mask = torch.ones_like(gap, dtype=torch.bool) if mask is None else mask
        state = through(self.blocks, state, mask, causal=True, real=real)
        last = torch.cat([torch.zeros_like(mu[:, :1]), mu[:, :-1]], 1)
        expected, spread = self.expect(state[:, :-1], last)
        joint = product(mu, logvar, expected, spread, gap[:, :-1])
        return Steps(expected, spread, joint[0], joint[1], state)


class GRUPrior(nn.Module):
    """A recurrent prior: step by step, each fed the posterior of the one before."""

    def __init__(self, config: SeqSetVAEConfig, latent: int) -> None:
        super().__init__()
        width = config.prior_width
        self.clock = Clock(config.time_buckets, width)
        self.start = nn.Parameter(torch.randn(width) / width**0.5)
        self.cell = nn.GRUCell(latent + width, width)
        self.expect = Expectation(width, latent)

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        gap: Tensor,
        minute: Tensor,
        product: Product,
        _mask: Tensor | None = None,
        _real: int | None = None,
    ) -> Steps:
        """Return what is expected; `mu`, `logvar` [B, S, D], `gap` and `minute` [B, S + 1].

        Steps of padding are taken too: all stays go step by step together.
        """
        clock = self.clock(gap, minute)
        state = self.start.expand(len(mu), -1)
        last = torch.zeros_like(mu[:, 0])
        found: list[tuple[Tensor, ...]] = []
        states = [state + clock[:, 0]]
        for step in range(mu.shape[1]):
            mean, spread = self.expect(states[-1], last)
            last, joint = product(mu[:, step], logvar[:, step], mean, spread, gap[:, step])
            found.append((mean, spread, last, joint))
            told = torch.cat([last, clock[:, step]], -1).float()
            # A state that autocast rounds at each of hundreds of steps would forget small changes.
            with torch.autocast(state.device.type, enabled=False):
                state = self.cell(told, state.float())
            states.append(state + clock[:, step + 1])
        prior_mu, prior_logvar, joint_mu, joint_logvar = (
            torch.stack(column, 1) for column in zip(*found, strict=True)
        )
        return Steps(prior_mu, prior_logvar, joint_mu, joint_logvar, torch.stack(states, 1))
