"""SeqSetVAE-PoE: a VAE over the sets of a stay, each set's latent expected from the ones before.

B patients, M sets of all of them, S sets of one, D latent (all levels), K sets decoded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.set_vae import augment, chunking
from ehr_ray.families.set_vae.augment import Perturbed
from ehr_ray.families.set_vae.chunking import Pieces
from ehr_ray.families.set_vae.loss import chamfer
from ehr_ray.families.set_vae.model import SetVAE
from ehr_ray.families.set_vae.sequence import experts
from ehr_ray.families.set_vae.sequence.config import SeqSetVAEConfig
from ehr_ray.families.set_vae.sequence.prior import GRUPrior, Steps, TransformerPrior
from ehr_ray.family import Batch
from ehr_ray.nn.gaussian import sample
from ehr_ray.nn.noise import combine

_LATENT = 21  # what a draw is for; no other purpose of this family has the number
GATE_RANGE = (0.1, 3.0)
"""Powers of a set's own posterior in the product: none is left unheard, none drowns the prior."""


@dataclass(frozen=True)
class Beliefs:
    """Of each set, [M, D]: `q` its own posterior, `p` the prior, `post` their product."""

    q_mu: Tensor
    q_logvar: Tensor
    p_mu: Tensor
    p_logvar: Tensor
    post_mu: Tensor
    post_logvar: Tensor
    gap: Tensor
    """Minutes since the set before, [M]."""
    state: Tensor
    """The prior's state after a patient's last set, [B, W]."""


class SeqSetVAE(nn.Module):
    """A SetVAE (`sets`), a prior over its latents in time, and the product of the two."""

    def __init__(self, config: SeqSetVAEConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.sets = SetVAE(config, vocabulary)
        latent = config.levels * config.latent
        kind = TransformerPrior if config.prior == "transformer" else GRUPrior
        self.prior = kind(config, latent)
        if config.poe == "gated":
            self.gate = nn.Sequential(nn.Linear(3, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return what the loss adds up.

        `recon` and `composition` [K] of the decoded sets with `decoded` [K], their indices, and
        `weight` [K] how many of its stay each stands for; `kl` [M, D] of the product from the
        prior, and `kl_standard` [M] of it from N(0, 1); `padding` and `padded`, tokens computed in
        vain and in all.
        """
        pieces = chunking.by_size(batch, *self.config.chunk_limits)
        keys = augment.keys_of(batch, seed)
        seen = self.sets.perturbed(batch, keys, seed) if self.training else None
        mu, logvar = _joined(self.encode(batch, seen, pieces), pieces.indices)
        beliefs = self.expect(batch, mu, logvar, pieces.num_sets)
        latent = sample(beliefs.post_mu, beliefs.post_logvar, combine(keys.sets, _LATENT))
        decoded = torch.arange(len(batch["patient"]), device=latent.device)
        weight = torch.ones_like(batch["num_sets"], dtype=torch.float32)
        if self.config.decode_sets is not None:
            drawn = augment.drawn_sets(batch, self.config.decode_sets, keys.sets)
            # Counted on the host, so that it need not ask a GPU how many were drawn.
            total = sum(min(size, self.config.decode_sets) for size in pieces.num_sets)
            decoded = augment.first_true(drawn, total)
            # Of a stay of n sets k are decoded: each stands for n / k, and the mean is of all.
            weight = batch["num_sets"] / batch["num_sets"].clamp(max=self.config.decode_sets)
        noise = self.config.decoder_noise if self.training else self.config.eval_decoder_noise
        rows = augment.query_rows(keys)[decoded] if noise else None
        standard = torch.zeros_like(beliefs.post_mu)
        normal = experts.divergence(beliefs.post_mu, beliefs.post_logvar, standard, standard)
        padded = chunking.padded_tokens(batch, pieces)
        return {
            "recon": self.errors(batch, latent, decoded, rows, noise),
            "composition": self.sets.compositions(latent[decoded], chunking.chosen(batch, decoded)),
            "decoded": decoded,
            "weight": weight[batch["patient"][decoded]],
            "kl": experts.divergence(
                beliefs.post_mu, beliefs.post_logvar, beliefs.p_mu, beliefs.p_logvar
            ),
            "kl_standard": normal.sum(1).detach(),
            "padding": padded - batch["mask"].sum(),
            "padded": padded,
        }

    def beliefs(self, batch: Batch, seed: int | None = None) -> Beliefs:
        """Return what is believed of each set; with a seed inputs are perturbed as in training."""
        pieces = chunking.by_size(batch, *self.config.chunk_limits)
        found = self.encode(batch, self._perturbed(batch, seed), pieces)
        mu, logvar = _joined(found, pieces.indices)
        return self.expect(batch, mu, logvar, pieces.num_sets)

    def task_beliefs(self, batch: Batch, seed: int | None) -> Beliefs:
        """Return `beliefs` for a task: the encoder's gradient flows through a draw of sets alone.

        Most of a step's cost is the gradient through every set of a stay; `learn_sets` of them
        tell the encoder as much on average, the others are encoded without.
        """
        limit = self.config.learn_sets
        noise = seed if self.config.perturb_task else None
        if seed is None or limit is None:
            return self.beliefs(batch, noise)
        drawn = augment.drawn_sets(batch, limit, augment.set_key(batch, seed + 1))
        learned, told = chunking.split_by_size(batch, drawn, *self.config.chunk_limits)
        seen = self._perturbed(batch, noise)
        found = self.encode(batch, seen, learned)
        with torch.no_grad():
            found += self.encode(batch, seen, told)
        mu, logvar = _joined(found, [*learned.indices, *told.indices])  # in the order of `found`
        return self.expect(batch, mu, logvar, learned.num_sets)

    def encode(
        self, batch: Batch, seen: Perturbed | None, pieces: Pieces
    ) -> list[tuple[Tensor, Tensor]]:
        """Return mean and log-variance of q(z_t | x_t), [m, D], of each chunk of m sets."""
        return [
            chunking.bounded(
                pieces,
                self._encode,
                chunking.chunk(batch, index, width),
                None if seen is None else seen.chunk(index, width),
                again=self.sets.recomputed,
            )
            for index, width in pieces
        ]

    def expect(
        self, batch: Batch, mu: Tensor, logvar: Tensor, num_sets: list[int] | None = None
    ) -> Beliefs:
        """Return what is believed where q(z_t | x_t) are `mu` and `logvar` [M, D].

        `num_sets` are the batch's, where the host knows them already. Patients are padded to the
        longest: a padded step comes after the real ones, where no causal step looks.
        """
        num_sets = batch["num_sets"].tolist() if num_sets is None else num_sets
        patients, steps = len(num_sets), max(num_sets)
        at = batch["patient"], batch["set_index"]
        grid = mu.new_zeros(patients, steps, mu.shape[1])
        # A step more than there are sets: what the prior expects after the last one is told too.
        minute = batch["minute"].new_zeros(patients, steps + 1)
        minute[at] = batch["minute"]
        # The step past the last set is at the time of that set.
        last = minute.gather(1, batch["num_sets"].unsqueeze(1) - 1)
        place = torch.arange(steps + 1, device=mu.device)
        size = batch["num_sets"].unsqueeze(1)
        minute = torch.where(place < size, minute, last)
        gap = minute.diff(dim=1, prepend=minute[:, :1]).float().clamp(min=0)
        found: Steps = self.prior(
            grid.index_put(at, mu),
            grid.index_put(at, logvar),
            gap,
            minute,
            self.product,
            place <= size,
            sum(num_sets) + patients,
        )
        ends = torch.arange(patients, device=mu.device), batch["num_sets"]
        return Beliefs(
            mu,
            logvar,
            found.mu[at],
            found.logvar[at],
            found.posterior_mu[at],
            found.posterior_logvar[at],
            gap[at],
            found.state[ends].float(),
        )

    def errors(
        self,
        batch: Batch,
        latent: Tensor,
        which: Tensor,
        rows: Tensor | None = None,
        noise: float = 0.0,
    ) -> Tensor:
        """Return the reconstruction error of the sets `which` [K] from latents [M, D], [K].

        `rows` [K, N] of `augment.query_rows` and `noise` shake the decoder's queries.
        """
        kept, wanted = chunking.chosen(batch, which), latent[which]
        pieces = chunking.by_size(kept, *self.config.chunk_limits)
        parts = [
            chunking.bounded(
                pieces,
                self._error,
                chunking.chunk(kept, i, width),
                wanted[i],
                None if rows is None else rows[i, :width],
                noise,
                again=self.sets.recomputed,
            )
            for i, width in pieces
        ]
        return chunking.joined(parts, pieces.indices)

    def levels_of(self, latent: Tensor) -> list[Tensor]:
        """Return a latent [M, D] as the set decoder takes it: one [M, Z] a level."""
        return list(latent.unflatten(1, (self.config.levels, -1)).unbind(1))

    def _perturbed(self, batch: Batch, seed: int | None) -> Perturbed | None:
        if seed is None:
            return None
        return self.sets.perturbed(batch, augment.keys_of(batch, seed), seed)

    def _encode(self, part: Batch, seen: Perturbed | None) -> tuple[Tensor, Tensor]:
        posterior = self.sets.encode(part, seen)
        return posterior.mu.transpose(0, 1).flatten(1), posterior.logvar.transpose(0, 1).flatten(1)

    def _error(self, part: Batch, latent: Tensor, rows: Tensor | None, noise: float) -> Tensor:
        decoded = self.sets.decode(self.levels_of(latent), part["code"], rows, noise)
        return chamfer(decoded, self.sets.target(part), part["mask"], self.config)

    def product(
        self, mu_q: Tensor, logvar_q: Tensor, mu_p: Tensor, logvar_p: Tensor, gap: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the product of a set's posterior and its prior."""
        if self.config.poe == "naive":
            return experts.product(mu_q, logvar_q, mu_p, logvar_p)
        surprise = (mu_q - mu_p).square() / (logvar_p.exp() + logvar_q.exp())
        told = torch.stack(
            [surprise.mean(-1).log1p(), (logvar_p - logvar_q).mean(-1), gap.log1p() / 8], -1
        )
        low, high = GATE_RANGE
        gate = low + (high - low) * torch.sigmoid(self.gate(told).float())
        return experts.product(mu_q, logvar_q, mu_p, logvar_p, gate)


def _joined(parts: list[tuple[Tensor, Tensor]], indices: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return means and log-variances of chunks in the order of the sets, [M, D] each."""
    mus, logvars = zip(*parts, strict=True)
    return chunking.joined(list(mus), indices), chunking.joined(list(logvars), indices)
