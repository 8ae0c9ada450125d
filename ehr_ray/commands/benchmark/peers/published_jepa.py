"""A training step of the published JEPA, made anew from its description.

Its encoder has 21,628,032 parameters for 36 features, its predictor 1,931,904. B windows of L rows
of F features; of the first `CONTEXT` rows the next `TARGETS` are predicted, and the moving average
reads all L, as the published step does. Attention is written out, without a fused kernel.
"""

import copy
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH: Final = 32
ROWS: Final = 25
FEATURES: Final = 36
CONTEXT: Final = 15
TARGETS: Final = 5
POSITIONS: Final = 20
"""Rows the position table has; for more it is stretched."""
WIDTH, DEPTH, HEADS = 384, 12, 6
PREDICTOR_WIDTH, PREDICTOR_DEPTH = 192, 4
DECAY: Final = 0.996


class Block(nn.Module):
    """Attention and MLP, each after a layer norm: [B, L, D] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the states after the block."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads
        weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Rows [B, L, F] to their states [B, K, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(FEATURES, 2 * WIDTH),
            nn.LayerNorm(2 * WIDTH),
            nn.GELU(),
            nn.Linear(2 * WIDTH, WIDTH),
            nn.LayerNorm(WIDTH),
        )
        self.position = nn.Parameter(torch.zeros(1, POSITIONS, WIDTH), requires_grad=False)
        self.blocks = nn.Sequential(*(Block(WIDTH) for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, rows: Tensor, kept: slice) -> Tensor:
        """Return the states of the rows that are kept, which see each other alone."""
        table = self.position.transpose(1, 2)
        position = F.interpolate(table, size=rows.shape[1], mode="linear").transpose(1, 2)
        return self.norm(self.blocks((self.embed(rows) + position)[:, kept]))


class Predictor(nn.Module):
    """States of the context [B, CONTEXT, D] to those of the rows after it [B, TARGETS, D]."""

    def __init__(self) -> None:
        super().__init__()
        width = PREDICTOR_WIDTH
        self.inner, self.outer = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH)
        self.position = nn.Parameter(torch.zeros(1, POSITIONS, width), requires_grad=False)
        self.mask = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width) for _ in range(PREDICTOR_DEPTH)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, context: Tensor) -> Tensor:
        """Return the predicted states."""
        asked = self.mask.expand(len(context), TARGETS, -1)
        rows = torch.cat([self.inner(context), asked], 1) + self.position[:, : CONTEXT + TARGETS]
        return self.outer(self.norm(self.blocks(rows))[:, CONTEXT:])


def published_step(batch: int = BATCH) -> Callable[[], None]:
    """Return a step of `batch` windows, every one of which trains, in float32."""
    torch.manual_seed(0)
    encoder, predictor = Encoder(), Predictor()
    teacher = copy.deepcopy(encoder).requires_grad_(False)
    learned = [p for m in (encoder, predictor) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4)
    rows = torch.randn(batch, ROWS, FEATURES)
    context, targets = slice(0, CONTEXT), slice(CONTEXT, CONTEXT + TARGETS)

    def step() -> None:
        with torch.no_grad():
            told = F.layer_norm(teacher(rows, slice(None)), (WIDTH,))[:, targets]
        loss = F.smooth_l1_loss(predictor(encoder(rows, context)), told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for new, mean in zip(encoder.parameters(), teacher.parameters(), strict=True):
                mean.mul_(DECAY).add_(new, alpha=1 - DECAY)

    return step
