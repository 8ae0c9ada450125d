"""A causal transformer continued token by token, with the keys and values of what it has read.

N continuations of one sequence of S tokens, each of t tokens so far; H heads of width W.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ehr_ray.nn.attention import attend
from ehr_ray.nn.transformer import Block

_FIRST_ROOM = 64
"""Tokens a cache has room for at first; full, it is doubled."""


class Continuation:
    """The blocks of a causal model over one sequence and N continuations of it.

    What all of them begin with is kept once. Nothing is kept for a gradient.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._caches = [_Cache(block) for block in blocks]

    def read(self, hidden: Tensor, turns: Tensor | None) -> Tensor:
        """Return [B, T, D] of the beginning, with rotary angles [T, W/2].

        Of one sequence, B = 1, all continuations share it; else each row is one's own.
        """
        for cache in self._caches:
            hidden = cache.read(hidden, turns)
        return hidden

    def follow(self, hidden: Tensor, turns: Tensor | None) -> Tensor:
        """Return [N, 1, D] of one more token of each, with rotary angles [1, W/2]."""
        for cache in self._caches:
            hidden = cache.follow(hidden, turns)
        return hidden

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the N continuations, by their places."""
        for cache in self._caches:
            cache.keep(rows)


class _Cache:
    """Keys and values of one block: shared [H, S, W], own [N, H, room, W] of which `used` count."""

    def __init__(self, block: Block) -> None:
        self.block, self.used = block, 0
        self.shared: tuple[Tensor, Tensor] | None = None
        self.own: tuple[Tensor, Tensor] | None = None

    def read(self, hidden: Tensor, turns: Tensor | None) -> Tensor:
        query, key, value = self.block.heads_of(hidden, turns)
        if len(hidden) == 1:
            self.shared = key[0], value[0]
        else:
            self.own, self.used = (key, value), key.shape[2]
        return self.block.attended(hidden, attend(query, key, value, causal=True))

    def follow(self, hidden: Tensor, turns: Tensor | None) -> Tensor:
        query, key, value = self.block.heads_of(hidden, turns)
        keys, values = self._with_room(key, value)
        keys[:, :, self.used], values[:, :, self.used] = key[:, :, 0], value[:, :, 0]
        self.used += 1
        own_keys, own_values = keys[:, :, : self.used], values[:, :, : self.used]
        scores = query @ own_keys.transpose(-1, -2)  # [N, H, 1, t]
        if self.shared is None:
            share = (scores / query.shape[-1] ** 0.5).softmax(-1)
            return self.block.attended(hidden, share @ own_values)
        asked = query[:, :, 0].transpose(0, 1)  # [H, N, W]: one product for all continuations
        begun = (asked @ self.shared[0].transpose(-1, -2)).transpose(0, 1).unsqueeze(2)
        size = begun.shape[-1]
        share = (torch.cat([begun, scores], -1) / query.shape[-1] ** 0.5).softmax(-1)
        found = (share[:, :, 0, :size].transpose(0, 1) @ self.shared[1]).transpose(0, 1)
        return self.block.attended(hidden, found.unsqueeze(2) + share[..., size:] @ own_values)

    def keep(self, rows: Tensor) -> None:
        if self.own is not None:
            self.own = self.own[0][rows], self.own[1][rows]

    def _with_room(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.own is None or self.used == self.own[0].shape[2]:
            keys, values = self.own or (key[:, :, :0], value[:, :, :0])
            more = key.new_zeros(*key.shape[:2], max(self.used, _FIRST_ROOM), key.shape[3])
            self.own = torch.cat([keys, more], 2), torch.cat([values, more], 2)
        return self.own
