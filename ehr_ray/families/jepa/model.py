"""A JEPA over rows: what the context makes of hidden rows, against what their own encoder sees.

B patients, T rows, K hidden rows, F features, D width of the encoder, P of the predictor. After
Assran et al. 2023 (I-JEPA, section 3), with positions by elapsed time and padding masked.
"""

import copy
import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.events.follow_up import followed_codes, measured_codes
from ehr_ray.events.visits import STATISTICS
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.jepa.config import JEPAConfig, Size
from ehr_ray.families.jepa.data import features_of
from ehr_ray.families.jepa.dense_rows import DenseRows, columns, dense, places, rows_at, sizes
from ehr_ray.families.jepa.future_value import fit_values, values_of
from ehr_ray.families.jepa.masks import draw_masks
from ehr_ray.families.jepa.time_to_event import fit_rates, last_state, truth_after
from ehr_ray.family import Axis, Batch, Scheduled
from ehr_ray.nn.future_value import FutureValue
from ehr_ray.nn.moment_heads import FIT_ROWS
from ehr_ray.nn.noise import combine
from ehr_ray.nn.time_to_event import TimeToEvent
from ehr_ray.nn.transformer import Block, blocks_of, through, time_waves

WAVES = 32
"""Sines and cosines of the elapsed time, from which a position is learned."""
FRESH_MINUTES = {"hours": 60.0, "visits": 30 * 24 * 60.0}
"""Age at which a level is half as fresh."""


class Encoder(nn.Module):
    """Rows to states: a row alone through two layers, then attention among a patient's rows."""

    def __init__(self, num_columns: int, size: Size, dropout: float = 0.0) -> None:
        super().__init__()
        width = size.width
        self.embed = nn.Sequential(
            nn.Linear(num_columns, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
            nn.LayerNorm(width),
        )
        self.time = nn.Linear(WAVES, width, bias=False)
        self.blocks = nn.ModuleList(Block(width, size.heads, dropout) for _ in range(size.depth))
        self.norm = nn.LayerNorm(width)
        _shrink(self.blocks)

    def forward(self, x: Tensor, minute: Tensor, mask: Tensor, real: Tensor | int | None) -> Tensor:
        """Return states [B, T, D] of rows [B, T, columns] at `minute`; `mask`, both [B, T].

        `real` as of `through`.
        """
        hidden = self.embed(x) + self.time(time_waves(minute, WAVES))
        states: Tensor = self.norm(through(self.blocks, hidden, mask, real=real))
        return states


class Predictor(nn.Module):
    """States of the context and the times of hidden rows to these rows' states."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.predictor_width
        self.enter = nn.Linear(size.width, width)
        self.time = nn.Linear(WAVES, width, bias=False)
        self.hidden = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, size.heads, 0.0) for _ in range(size.predictor_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, size.width)
        _shrink(self.blocks)

    def forward(
        self,
        states: Tensor,
        minute: Tensor,
        mask: Tensor,
        ahead: Tensor,
        wanted: Tensor,
        real: int | None,
    ) -> Tensor:
        """Return [B, K, D]: of context `states` [B, T, D], the rows at minutes `ahead` [B, K].

        `real` are how many rows of both there are, where the host knows it.
        """
        seen = self.enter(states)
        # Autocast has made `seen` of another type, and `cat` would turn both into the wider one.
        asked = self.hidden.to(seen.dtype).expand(*ahead.shape, -1)
        hidden = torch.cat([seen, asked], 1)
        hidden = hidden + self.time(time_waves(torch.cat([minute, ahead], 1), WAVES))
        hidden = through(self.blocks, hidden, torch.cat([mask, wanted], 1), real=real)
        found: Tensor = self.leave(self.norm(hidden[:, states.shape[1] :]))
        return found


class JEPA(nn.Module):
    """Encoder, its moving average as the target, predictor, and heads for values and times."""

    feature_code: Tensor

    def __init__(self, config: JEPAConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        features = features_of(config, vocabulary)
        num_columns = len(features) * (len(STATISTICS[config.rows]) + 2)
        self.register_buffer(
            "feature_code", torch.from_numpy(features.code).long(), persistent=False
        )
        self.encoder = Encoder(num_columns, config.size, config.dropout)
        if config.target == "average":
            # It follows the encoder by `after_step`, so both begin with the same weights.
            self.target = copy.deepcopy(self.encoder).requires_grad_(False).eval()
        self.predictor = Predictor(config.size)
        if config.value_weight:
            self.values = nn.Linear(config.size.width, len(features))
        if config.followed:
            codes = len(followed_codes(config.followed, vocabulary))
            self.time_to_event = TimeToEvent(config.size.width, codes, config.time_to_event_bins)
        if config.measured:
            codes = len(measured_codes(config.measured, vocabulary))
            self.future_value = FutureValue(config.size.width, codes, config.future_value_hours)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the target, whose states are goals and never dropped out."""
        super().train(mode)
        if hasattr(self, "target"):
            self.target.eval()
        return self

    def forward(self, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return what the loss compares, K hidden rows of each patient.

        `predicted` and `goal` [B, K, D], `wanted` [B, K], the places `hidden` [N] of these in
        B * K where they are contrasted, `state` [B, D], the context's mean, and
        with a head of values `estimate` and `level` [B, K, F] and `observed` [B, K, F], with those
        of times and values after the context what `TimeToEvent` and `FutureValue` give.
        """
        sheet = dense(batch)
        context, hidden = self.masks(batch, seed)
        # Here the host waits for the device, once for both: the shapes below follow from it.
        told, asked = sizes(context & sheet.mask, hidden)
        index, wanted = places(hidden, asked)
        seen = sheet.take(context, told)
        if self.training:
            key = combine(batch["subject_id"], seed)
            seen = seen.shaken(key, self.config.level_noise, self.config.time_jitter)
        states = self.encode(seen)
        ahead = sheet.minute.gather(1, index)
        rows = told.total + asked.total
        predicted = self.predictor(states, seen.minute, seen.mask, ahead, wanted, rows)
        real = seen.mask.unsqueeze(-1)
        out = {
            "predicted": predicted.float(),
            "goal": rows_at(self.goals(sheet), index),
            "wanted": wanted,
            "state": (states.float() * real).sum(1) / real.sum(1),
        }
        if self.config.latent_loss == "infonce":  # not by `wanted`, for whose number a GPU is asked
            out["hidden"] = (~wanted).flatten().byte().argsort(stable=True)[: asked.total]
        if self.config.value_weight:
            out["estimate"] = self.values(predicted).float()
            out["level"] = rows_at(sheet.value[..., 0], index)
            out["observed"] = rows_at(sheet.observed, index) & wanted.unsqueeze(-1)
        if self.config.followed:
            truth = truth_after(batch, context, self.time_to_event)
            out |= self.time_to_event(last_state(states.float(), seen.mask), truth)
        if self.config.measured:
            values = values_of(batch, context, self.future_value)
            out |= self.future_value(last_state(states.float(), seen.mask), values)
        return out

    def masks(self, batch: Batch, seed: int) -> tuple[Tensor, Tensor]:
        """Return the context and the hidden rows of each patient, [B, T]."""
        return draw_masks(batch["mask"], combine(batch["subject_id"], seed), self.config)

    def encode(self, sheet: DenseRows, *, target: bool = False) -> Tensor:
        """Return the states of all rows of a sheet, [B, T, D]."""
        limit = None if self.config.carry_hours is None else 60 * self.config.carry_hours
        x = columns(sheet, limit, FRESH_MINUTES[self.config.rows])
        encoder = self.target if target and hasattr(self, "target") else self.encoder
        states: Tensor = encoder(x, sheet.minute, sheet.mask, sheet.real)
        return states

    def goals(self, sheet: DenseRows) -> Tensor:
        """Return the target's states, each normalised over its D numbers, [B, T, D].

        Only those of the encoder itself have a gradient.
        """
        trained = torch.is_grad_enabled() and self.config.target == "online"
        with torch.set_grad_enabled(trained):
            states = self.encode(sheet, target=True).float()
            return F.layer_norm(states, states.shape[-1:])


def axes(config: JEPAConfig, vocabulary: Vocabulary) -> dict[str, Axis]:
    """Return what the columns the encoders read, and the values that are told, are of."""
    names, statistics = features_of(config, vocabulary).names, STATISTICS[config.rows]
    # The order of `dense_rows.columns`.
    whole = [f"{what}//{name}" for what in ("level", "fresh", "observed") for name in names]
    parts = [f"{which}//{name}" for name in names for which in statistics[1:]]
    read = Axis(1, (*whole, *parts))
    told = Axis(0, names)
    heads = {
        "time_to_event.codes": followed_codes(config.followed, vocabulary),
        "future_value.codes": measured_codes(config.measured, vocabulary),
    }
    average = {"target.embed.0.weight": read} if config.target == "average" else {}
    return {
        "encoder.embed.0.weight": read,
        **average,
        "values.weight": told,
        "values.bias": told,
        **{n: Axis(0, tuple(vocabulary.codes[i] for i in c)) for n, c in heads.items() if len(c)},
    }


def meanings(config: JEPAConfig) -> dict[str, str]:
    """Return what the inputs are: hours and visits have other statistics."""
    return {"model.rows": config.rows}


def fit_heads(model: JEPA, batch: Batch) -> None:
    """Fit on patients of train what the heads start from that are asked after a context."""
    fit_rates(model, batch)
    fit_values(model, batch)


def fit_rows(config: JEPAConfig) -> int:
    """Return how many rows of train `fit_heads` reads."""
    return FIT_ROWS if config.followed or config.measured else 0


@torch.no_grad()
def after_step(model: JEPA, scheduled: Scheduled) -> None:
    """Move the target towards the encoder: momentum * target + (1 - momentum) * encoder."""
    if not hasattr(model, "target"):
        return
    target: list[Tensor] = [*model.target.parameters()]
    encoder: list[Tensor] = [*model.encoder.parameters()]
    torch._foreach_lerp_(target, encoder, 1 - scheduled["momentum"])


def _shrink(blocks: nn.ModuleList) -> None:
    """Start a block's additions small, by its place: 1 / sqrt(2 i) (Radford et al. 2019, 2.3)."""
    with torch.no_grad():
        for place, block in enumerate(blocks_of(blocks), start=1):
            for layer in block.added():
                layer.weight.div_(math.sqrt(2 * place))
