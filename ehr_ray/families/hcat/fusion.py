"""EnhancedHCAT: branches, a global encoder and routed heads over five tokens.

B patients, M = 5 modalities, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.events.modalities import WIDTH
from ehr_ray.events.options import MODALITIES
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.families.hcat.tokenizer import Tokens
from ehr_ray.nn.pooling import AttentivePool
from ehr_ray.nn.transformer import Block

NUM = len(MODALITIES)
BRANCHES = (("clinical", "temporal"), ("pathological", "spatial"), ("semantic",))
PLACES = tuple(tuple(MODALITIES.index(name) for name in names) for names in BRANCHES)
OUTCOMES = 2
CONTRAST = 64
"""Width of the contrastive projection."""


@dataclass(frozen=True)
class Fused:
    """`logit` [B, 2], `embedding` [B, 3 D], `weight` of each token [B, M]."""

    logit: Tensor
    embedding: Tensor
    weight: Tensor


class QualityGate(nn.Module):
    """Weights of the tokens by the quality, spread and presence of all modalities."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(3 * NUM, width), nn.GELU(), nn.Linear(width, NUM))

    def forward(self, seen: Tokens) -> Tensor:
        """Return weights in (0, 1), [B, M]."""
        inputs = torch.cat([seen.quality, seen.spread, seen.present.float()], 1)
        weight: Tensor = torch.sigmoid(2.0 + self.score(inputs))
        return weight


class EnhancedHCAT(nn.Module):
    """Hierarchical cross-modal attention over tokens that are there or imputed."""

    def __init__(self, config: HCATConfig) -> None:
        super().__init__()
        size = config.size
        width, heads, dropout = size.width, size.heads, config.dropout
        self.config = config
        self.project = nn.ModuleList(nn.Linear(WIDTH, width) for _ in MODALITIES)
        self.modality = nn.Parameter(torch.randn(NUM, width) * 0.02)
        self.summary = nn.Parameter(torch.randn(width) * 0.02)
        self.gate = QualityGate(max(8, width // 4)) if config.gate else None
        self.doubt = nn.Parameter(torch.zeros(())) if config.missing == "impute" else None
        self.temporal = Block(width, heads, dropout)
        self.spatial = Block(width, heads, dropout)
        self.semantic = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)
        )
        layers = range(size.global_layers)
        self.layers = nn.ModuleList(Block(width, heads, dropout) for _ in layers)
        self.pools = nn.ModuleList(AttentivePool(width, heads) for _ in BRANCHES)
        self.cross = Block(width, heads, dropout)
        self.norm = nn.LayerNorm(width)
        self.routes = nn.ModuleList(_head(len(BRANCHES) * width, width, 3, dropout) for _ in "sr")
        self.heads = nn.ModuleList(_head(width, max(4, width // 2), 1, dropout) for _ in "sr")
        places = [MODALITIES.index(name) for name in config.linear_modalities]
        self.places = places if config.linear else []
        self.linear = nn.Linear(len(self.places) * WIDTH, OUTCOMES) if self.places else None
        if self.linear is not None:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
        self.contrast = (
            nn.Sequential(nn.Linear(3 * width, width), nn.GELU(), nn.Linear(width, CONTRAST))
            if config.alpha_con
            else None
        )

    def forward(self, seen: Tokens, value: Tensor, logvar: Tensor | None) -> Fused:
        """Return predictions from tokens [B, M, 512]; `logvar` [B, M] of imputations, or None.

        With imputations every token counts, an uncertain one less; without, only those in `seen`.
        """
        weight = self._weights(seen, logvar)
        mask = seen.present if logvar is None else torch.ones_like(seen.present)
        weight = weight * mask
        tokens = torch.stack([layer(value[:, m]) for m, layer in enumerate(self.project)], 1)
        tokens = (tokens + self.modality) * weight.unsqueeze(-1)
        branches = self._branches(tokens, mask)
        summary = self.summary.expand(tokens.shape[0], 1, -1)
        hidden, there = torch.cat([summary, branches], 1), F.pad(mask, (1, 0), value=True)
        for layer in self.layers:
            hidden = layer(hidden, there, False, None)
        vectors = torch.stack([self._pooled(hidden, there, i) for i in range(len(BRANCHES))], 1)
        vectors = self.norm(self.cross(vectors, None, False, None))
        embedding = vectors.flatten(1)
        logit = torch.cat(
            [
                head((F.softmax(route(embedding), -1).unsqueeze(-1) * vectors).sum(1))
                for route, head in zip(self.routes, self.heads, strict=True)
            ],
            1,
        )
        if self.linear is not None:
            parts = _at(value * weight.unsqueeze(-1), self.places).flatten(1)
            logit = logit + self.linear(parts)
        return Fused(logit, embedding, weight)

    def views(self, embedding: Tensor) -> Tensor:
        """Return unit vectors for the contrast, [B, 64]."""
        assert self.contrast is not None
        return F.normalize(self.contrast(embedding), dim=-1)

    def _weights(self, seen: Tokens, logvar: Tensor | None) -> Tensor:
        weight = torch.ones_like(seen.quality) if self.gate is None else self.gate(seen)
        if logvar is None or self.doubt is None:
            return weight
        unsure = torch.sigmoid(logvar)  # var / (1 + var): a half where nothing is known
        believed = 1 - torch.sigmoid(self.doubt) * unsure
        return weight * torch.where(seen.present, torch.ones_like(weight), believed)

    def _branches(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the tokens after their branch's own encoder, in the order of the modalities."""
        found = list(tokens.unbind(1))
        for at, layer in ((PLACES[0], self.temporal), (PLACES[1], self.spatial)):
            there = _at(mask, at)
            there = there | ~there.any(1, keepdim=True)  # of an empty branch nothing is read later
            encoded = layer(_at(tokens, at), there, False, None)
            for place, token in zip(at, encoded.unbind(1), strict=True):
                found[place] = token
        only = MODALITIES.index("semantic")
        found[only] = self.semantic(found[only])
        return torch.stack(found, 1)

    def _pooled(self, hidden: Tensor, there: Tensor, branch: int) -> Tensor:
        """Return a branch's vector; the summary token stands in for a branch without tokens."""
        at = [0, *(place + 1 for place in PLACES[branch])]
        pooled: Tensor = self.pools[branch](_at(hidden, at), _at(there, at))
        return pooled


def _at(values: Tensor, places: Sequence[int]) -> Tensor:
    """Return the columns at some places; a list as an index would be copied to a GPU each time."""
    return torch.stack([values[:, place] for place in places], 1)


def _head(width: int, hidden: int, out: int, dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, out)
    )
