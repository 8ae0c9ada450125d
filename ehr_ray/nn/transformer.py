"""Pre-norm transformer blocks and positions.

B patients, T tokens, N real ones of all, D width, H heads. Masks are True where a token is real.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ehr_ray.nn.attention import attend
from ehr_ray.nn.packed import Packed, packing

SHORTEST, LONGEST = 10.0, 10 * 525_600.0
"""Minutes: periods of the waves that tell time, from ten minutes to ten years."""
SPAN = 2.0**17
"""Minutes (91 days) whose angles float32 holds well, at the shortest period too."""


class Block(nn.Module):
    """h + Attend(norm h), then h + FeedForward(norm h) (Vaswani et al. 2017; Xiong et al. 2020).

    With `recomputed` only its input is kept for the gradient, and the rest computed once more, with
    the same dropout (Chen et al. 2016). `compiled` is `computed` as torch.compile made it, for what
    is trained.
    """

    recomputed = False
    compiled: Callable[..., Tensor] | None = None

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def added(self) -> tuple[nn.Linear, nn.Linear]:
        """Return the layers whose outputs are added to what comes in."""
        last = self.feed[2]
        assert isinstance(last, nn.Linear)
        return self.out, last

    def forward(
        self, hidden: Tensor, keys: Tensor | Packed | None, causal: bool, turns: Tensor | None
    ) -> Tensor:
        """Return [B, T, D]; `keys` [B, T] are those to see, `turns` rotary angles [T, D/2H].

        With a `Packed` for `keys` tokens are [N, 1, D] and `turns` of each, [N, 1, 1, D/2H].
        """
        trained = torch.is_grad_enabled()
        compute = self.compiled if self.compiled is not None and trained else Block.computed
        if self.recomputed and trained:
            again = checkpoint(compute, self, hidden, keys, causal, turns, use_reentrant=False)
            assert isinstance(again, Tensor)
            return again
        return compute(self, hidden, keys, causal, turns)

    def computed(
        self, hidden: Tensor, keys: Tensor | Packed | None, causal: bool, turns: Tensor | None
    ) -> Tensor:
        """Return what `forward` does, without the ways to compute it."""
        query, key, value = self.heads_of(hidden, turns)
        if isinstance(keys, Packed):
            found = keys.attend(query, key, value, causal=causal)
        else:
            where = None if keys is None else keys[:, None, None, :]
            found = attend(query, key, value, where, causal=causal)
        return self.attended(hidden, found.to(query.dtype))

    def heads_of(self, hidden: Tensor, turns: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of [B, T, D], each [B, H, T, D/H]."""
        projected = self.query_key_value(self.norm_attention(hidden))
        query, key, value = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if turns is not None:
            query, key = rotated(query, turns), rotated(key, turns)
        return query, key, value

    def attended(self, hidden: Tensor, found: Tensor) -> Tensor:
        """Return [B, T, D] of what came in, [B, T, D], and what its heads found, [B, H, T, D/H]."""
        hidden = hidden + self.dropout(self.out(found.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.feed(self.norm_feed(hidden)))


def blocks_of(modules: nn.ModuleList) -> list[Block]:
    """Return the blocks of a list, which knows no more of them than that they are modules."""
    blocks = [module for module in modules if isinstance(module, Block)]
    assert len(blocks) == len(modules)
    return blocks


def through(
    blocks: nn.ModuleList,
    hidden: Tensor,
    mask: Tensor,
    *,
    causal: bool = False,
    turns: Tensor | None = None,
    real: Tensor | int | None = None,
) -> Tensor:
    """Return [B, T, D] after blocks, of tokens that are real where `mask` [B, T] is True.

    Of padding nothing is promised; it lies at the right where blocks are `causal`. `turns` are
    rotary angles [T, D/2H]. With `real`, the places of the real tokens in B * T or their number, as
    far as the host knows them, a GPU with a kernel for it computes these alone.
    """
    first, length = blocks[0], hidden.shape[1]
    assert isinstance(first, Block)
    static = first.compiled is not None and torch.is_grad_enabled()
    packed = None if real is None or static else packing(hidden, first.heads, mask, real)
    if packed is not None:
        hidden, turns = packed.pack(hidden), None if turns is None else packed.rows(turns)
        for block in blocks:
            hidden = block(hidden, packed, causal, turns)
        return packed.unpack(hidden)
    if static:  # each shape is compiled, so that there are to be few
        more = rounded(length) - length
        hidden, mask = F.pad(hidden, (0, 0, 0, more)), F.pad(mask, (0, more))
        turns = None if turns is None else F.pad(turns, (0, 0, 0, more))
    # A causal query does not look at padding, to its right. A patient without tokens attends to
    # padding: attention over nothing is not a number.
    keys = None if causal else mask | ~mask.any(1, keepdim=True)
    for block in blocks:
        hidden = block(hidden, keys, causal, turns)
    return hidden[:, :length] if static else hidden


def rounded(length: int) -> int:
    """Return a length rounded up, by less than a quarter above 32: four lengths an octave."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    """Return the positions of Vaswani et al. 2017, 3.5: sine on even columns, [T, D]."""
    angle = torch.arange(length, device=device)[:, None] * _rates(width, 10_000.0, device)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def time_waves(minute: Tensor, width: int) -> Tensor:
    """Return sines and cosines of elapsed minutes, [*minute.shape, D]."""
    steps = torch.linspace(0, 1, width // 2, device=minute.device)
    angle = wave_angles(minute, SHORTEST * (LONGEST / SHORTEST) ** steps)
    return torch.cat([angle.sin(), angle.cos()], -1)


def wave_angles(minute: Tensor, period: Tensor) -> Tensor:
    """Return 2 pi minute / period up to whole turns, float32 [*minute.shape, P].

    Of minutes beyond `SPAN`, given as float64, the multiples of it add only the part of a period
    that they leave, so that waves are right over a whole life.
    """
    steps = torch.trunc(minute / SPAN)
    rest = (minute - steps * SPAN).float().unsqueeze(-1)
    turns = (steps.double().unsqueeze(-1) * SPAN / period.double()) % 1
    return 2 * torch.pi * rest / period + 2 * torch.pi * turns.float()


def rotary_turns(length: int, width: int, device: torch.device) -> Tensor:
    """Return the angles of rotary positions for heads of `width` (Su et al. 2021), [T, width/2]."""
    return torch.arange(length, device=device)[:, None] * _rates(width, 10_000.0, device)


def rotated(x: Tensor, turns: Tensor) -> Tensor:
    """Return [B, H, T, W] with each pair of columns turned by its angle."""
    first, second = x.chunk(2, -1)
    cos, sin = turns.cos().to(x.dtype), turns.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


def _rates(width: int, base: float, device: torch.device) -> Tensor:
    return base ** (-torch.arange(0, width, 2, device=device) / width)
