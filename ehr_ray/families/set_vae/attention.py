"""Set attention (Lee et al. 2019, Set Transformer) on padded batches of sets.

B sets, N queries, K keys, D width. Masks are True where a token is real.
"""

import torch
from torch import Tensor, nn

from ehr_ray.nn.attention import attend


class MAB(nn.Module):
    """Multihead attention block, pre-norm: h = q + Attend(q, kv); h + FeedForward(h)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query, self.norm_key = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [B, N, D]; `mask` [B, K] says which keys are real.

        Queries that all sets share come as [1, N, D] and are projected once.
        """
        q = self._split(self.query(self.norm_query(query))).expand(len(keys), -1, -1, -1)
        k, v = self.key_value(self.norm_key(keys)).chunk(2, -1)
        where = None if mask is None else mask[:, None, None, :]
        attended = attend(q, self._split(k), self._split(v), where)
        hidden = query + self.out(attended.transpose(1, 2).flatten(2))
        return hidden + self.feed_forward(hidden)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ISAB(nn.Module):
    """Induced set attention block: tokens attend to a few points that attend to all tokens."""

    def __init__(self, width: int, heads: int, inducing: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(inducing, width) / width**0.5)
        self.gather, self.spread = MAB(width, heads), MAB(width, heads)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return [B, N, D]."""
        return self.spread(tokens, self.gather(self.points.unsqueeze(0), tokens, mask))


class Pooling(nn.Module):
    """One vector of a set: a learned query attending to its tokens (PMA with one seed)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.attend = MAB(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return [B, D]."""
        pooled: Tensor = self.attend(self.seed.unsqueeze(0), tokens, mask)
        return self.norm(pooled.squeeze(1))
