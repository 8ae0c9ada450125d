"""Many states to one vector: B patients, T states, D width."""

import torch
from torch import Tensor, nn

from ehr_ray.nn.attention import attend


class AttentivePool(nn.Module):
    """A learned query attends to a patient's states (as in Bardes et al. 2024, V-JEPA's probe)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(1, heads, 1, width // heads) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return [B, D]; `mask` [B, T] says which states are real, at least one of each patient."""
        split = self.key_value(self.norm(states)).unflatten(-1, (2, self.heads, -1))
        key, value = split.permute(2, 0, 3, 1, 4)
        query = self.query.to(key.dtype).expand(states.shape[0], -1, -1, -1)
        pooled = attend(query, key, value, mask[:, None, None, :]).to(key.dtype)
        found: Tensor = self.out(pooled.flatten(1))
        return found
