"""Which rows of each patient are context and which are targets: B patients, T rows.

Every draw is a function of the patient's key, so a patient is masked alike in any batch, on any
worker. A patient with one row has no target.
"""

import torch
from torch import Tensor

from ehr_ray.families.jepa.config import JEPAConfig
from ehr_ray.nn.noise import uniform

_WHICH, _START, _SIZE, _KEEP = 1, 2, 3, 4


def draw_masks(mask: Tensor, key: Tensor, config: JEPAConfig) -> tuple[Tensor, Tensor]:
    """Return context and target rows, bool [B, T], disjoint; `key` [B] decides."""
    if config.mask == "future":
        context, target = future(mask, key, config)
    else:
        context, target = blocks(mask, key, config)
        if config.mask == "both":
            ahead = (uniform(key, _WHICH) < 0.5).unsqueeze(1)
            other_context, other_target = future(mask, key, config)
            context = torch.where(ahead, other_context, context)
            target = torch.where(ahead, other_target, target)
    if config.context_ratio < 1:
        draw = uniform(key.unsqueeze(1), _KEEP, _position(mask)).masked_fill(~context, 2.0)
        context = context & ((draw < config.context_ratio) | (draw == draw.amin(1, keepdim=True)))
    return context, target


def future(mask: Tensor, key: Tensor, config: JEPAConfig) -> tuple[Tensor, Tensor]:
    """Return rows up to a moment and the `target_rows` after it; the moment is drawn.

    Futures are at most half of the rows, and begin in the latter half of what is possible or, with
    `context_rows`, where so many rows lie before them.
    """
    rows = mask.sum(1)
    count = (rows // 2).clamp(max=config.target_rows)
    latest = rows - count
    wanted = (latest + 1) // 2
    if config.context_rows is not None:
        wanted = torch.full_like(rows, config.context_rows)
    earliest = torch.minimum(wanted, latest)
    start = earliest + _below(uniform(key, _START), latest - earliest + 1)
    first = torch.zeros_like(start)
    if config.context_rows is not None:
        first = (start - config.context_rows).clamp(min=0)
    position = _position(mask)
    context = (position >= first[:, None]) & (position < start[:, None]) & mask
    target = (position >= start[:, None]) & (position < (start + count)[:, None]) & mask
    return context, target


def blocks(mask: Tensor, key: Tensor, config: JEPAConfig) -> tuple[Tensor, Tensor]:
    """Return several blocks of rows as targets and the other rows as context.

    A block that would leave less than a quarter of the rows to the context is not taken.
    """
    rows = mask.sum(1)
    most = rows - (rows // 4).clamp(min=1)
    position = _position(mask)
    target = torch.zeros_like(mask)
    smallest, largest = config.block_share
    purposes = torch.arange(_START, _SIZE + 1, device=mask.device).view(-1, 1, 1)
    blocks = torch.arange(config.blocks, device=mask.device).unsqueeze(1)
    where, share = uniform(key, purposes, blocks)  # [blocks, B]
    share = smallest + (largest - smallest) * share
    sizes = torch.minimum((share * rows).round().long().clamp(min=1), most)
    starts = _below(where, rows - sizes + 1)
    for size, start in zip(sizes, starts, strict=True):
        new = (position >= start[:, None]) & (position < (start + size)[:, None]) & mask
        joined = target | new
        target = torch.where((joined.sum(1) <= most).unsqueeze(1), joined, target)
    return mask & ~target, target


def _below(draw: Tensor, count: Tensor) -> Tensor:
    """Return an integer in [0, count) of a uniform draw."""
    return torch.minimum((draw * count).long(), count - 1).clamp(min=0)


def _position(mask: Tensor) -> Tensor:
    return torch.arange(mask.shape[1], device=mask.device).unsqueeze(0)
