"""What training hides and shakes: every draw is a function of (seed, patient, set, variable).

All tokens of a batch are drawn for at once, whatever chunks it is computed in: a draw is two dozen
small operations, and a GPU takes as long to start them for one set as for all.

M sets, N tokens, B patients, V variables, R reduced width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ehr_ray.families.set_vae.config import SetConfig
from ehr_ray.family import Batch
from ehr_ray.nn.noise import combine, extended, normal, uniform

NOISE_ROWS = 1 << 14
"""Normal vectors the decoder's queries are shaken by: a draw a number would cost more than it."""
_SAMPLE, _STALE, _MASK, _SMALL, _VALUE, _DIRECTION = range(1, 7)
_QUERY = 12


class Keys(NamedTuple):
    """Keys of the noise of a batch: of sets, int64 [M], and of their tokens, [M, N]."""

    sets: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Perturbed:
    """What the encoder sees of a batch in training, instead of what it holds."""

    hidden: Tensor
    """Values it does not see, bool [M, N]."""
    value: Tensor
    """Values, shaken, [M, N]."""
    directions: Tensor
    """Of the variables, shaken, [V, R]."""

    def chunk(self, index: Tensor, width: int) -> "Perturbed":
        """Return that of the sets of `index`, padded to `width`."""
        return Perturbed(self.hidden[index, :width], self.value[index, :width], self.directions)


def perturbed(
    batch: Batch, keys: Keys, directions: Tensor, config: SetConfig, seed: int
) -> Perturbed:
    """Return the batch's values hidden and shaken, and the variables' `directions` [V, R]."""
    return Perturbed(
        hidden_tokens(batch, config, keys),
        batch["value"] + value_noise(keys, config.val_noise_std),
        jitter(directions, config.dir_noise_std, seed),
    )


def keys_of(batch: Batch, seed: int) -> Keys:
    """Return the keys of a batch's noise, a function of (seed, patient, set, variable)."""
    key = set_key(batch, seed)
    return Keys(key, combine(key[:, None], batch["code"]))


def set_key(batch: Batch, seed: int) -> Tensor:
    """Return the key of each set's noise, int64 [M]."""
    return combine(batch["subject_id"][batch["patient"]], batch["set_index"], seed)


def sample_sets(batch: Batch, per_patient: int | None, seed: int) -> Batch:
    """Return the batch with at most `per_patient` sets of each patient, drawn without order."""
    if per_patient is None:
        return batch
    sizes = batch["num_sets"].tolist()
    if max(sizes) <= per_patient:
        return batch
    keep = drawn_sets(batch, per_patient, set_key(batch, seed))
    total = sum(min(size, per_patient) for size in sizes)
    return select_sets(batch, keep, total, batch["num_sets"].clamp(max=per_patient))


def drawn_sets(batch: Batch, per_patient: int, key: Tensor) -> Tensor:
    """Return which sets are among `per_patient` drawn of each patient, bool [M]; `key` [M]."""
    draw = uniform(key, _SAMPLE)
    by_draw = torch.argsort(batch["patient"].double() + draw.double())
    rank = torch.empty_like(by_draw)
    first = batch["num_sets"].cumsum(0) - batch["num_sets"]
    rank[by_draw] = torch.arange(len(rank), device=rank.device)
    return rank - first[batch["patient"]] < per_patient


def select_sets(batch: Batch, keep: Tensor, total: int, num_sets: Tensor) -> Batch:
    """Return the batch with the `total` sets of `keep` [M], `num_sets` [B] of each patient."""
    index = first_true(keep, total)
    per_patient = {"num_sets": num_sets, "subject_id": batch["subject_id"]}
    return {k: v[index] for k, v in batch.items() if k not in per_patient} | per_patient


def first_true(keep: Tensor, total: int) -> Tensor:
    """Return the `total` indices where `keep` [M] is True: no host waits for their number."""
    return (~keep).to(torch.uint8).argsort(stable=True)[:total]


def hidden_tokens(batch: Batch, config: SetConfig, keys: Keys) -> Tensor:
    """Return which values the encoder does not see, bool [M, N].

    Value dropout hides carried and live values with their own chance; Set-MAE masks one token of
    a small set or a share of a large one. A set keeps at least one value, a live one if it can.
    """
    mask = batch["mask"]
    purposes = torch.arange(_STALE, _MASK + 1, device=mask.device).view(-1, 1, 1)
    stale, draw = uniform(keys.tokens, purposes)
    chance = torch.where(batch["carried"], config.p_stale, config.p_live)
    hidden = stale < chance
    size = mask.sum(1)
    large = torch.ceil(config.set_mae_ratio * size.float()).clamp(max=config.max_masks_per_set)
    small = (uniform(keys.sets, _SMALL) < config.small_set_mask_prob).float()
    small = small.clamp(max=config.max_masks_per_set)
    count = torch.where(size <= config.small_set_threshold, small, large)
    # The lowest draws of a set are masked: as many as its count.
    draw = draw.masked_fill(~mask, 2.0)
    hidden |= draw.argsort(1).argsort(1) < count[:, None]
    hidden &= mask
    everything = (hidden == mask).all(1)
    preference = draw + batch["carried"] * 1.0 + (~mask) * 4.0
    position = torch.arange(mask.shape[1], device=mask.device)
    keep = position == preference.argmin(1, keepdim=True)
    return hidden & ~(everything[:, None] & keep)


def value_noise(keys: Keys, std: float) -> Tensor:
    """Return N(0, std) for each token, [M, N]."""
    if std == 0:
        return torch.zeros_like(keys.tokens, dtype=torch.float32)
    return std * normal(extended(keys.tokens, _VALUE), 1).squeeze(-1)


def query_rows(keys: Keys) -> Tensor:
    """Return which of `NOISE_ROWS` vectors shakes the decoder's query of each token, [M, N]."""
    return extended(keys.tokens, _QUERY) & (NOISE_ROWS - 1)


def jitter(directions: Tensor, std: float, seed: int) -> Tensor:
    """Return unit vectors [V, R] shaken by N(0, std): one draw a step for each variable."""
    if std == 0:
        return directions
    variable = torch.arange(len(directions), device=directions.device)
    key = combine(variable, seed, _DIRECTION)
    return F.normalize(directions + std * normal(key, directions.shape[1]), dim=-1)
