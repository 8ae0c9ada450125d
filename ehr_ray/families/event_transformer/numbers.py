"""Numbers of an event as piecewise-linear codes (Gorishniy et al. 2022, eq. 1), told by its phrase.

B patients, T tokens, P phrases, K pieces, D width.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.events.normalize import z_score
from ehr_ray.events.tokens import GAP_EDGES, TokenBook
from ehr_ray.events.vocabulary import QUANTILES

NEVER = 1e9
"""Where the pieces of a phrase begin that has no value: nothing reaches them."""


class Pieces(nn.Module):
    """What a number adds to a token: a map of its pieces, times a projection of the phrase.

    So each variable has a map of its own, and a phrase that train never saw has one too.
    """

    edges: Tensor

    def __init__(self, edges: np.ndarray, embedding: int, width: int) -> None:
        """Take K + 1 ascending edges, of every phrase [1, K + 1] or of each [P, K + 1]."""
        super().__init__()
        made = torch.from_numpy(edges).float()
        self.register_buffer("edges", made, persistent=False)
        self.of_phrase = nn.Linear(embedding, width, bias=False)
        self.of_pieces = nn.Linear(edges.shape[1] - 1, width, bias=False)

    def forward(self, number: Tensor, phrase: Tensor, made: Tensor) -> Tensor:
        """Return [B, T, D], of `number`, `phrase` [B, T] and the projection of each phrase [P, D].

        NaN adds nothing.
        """
        edges = self.edges[0] if len(self.edges) == 1 else F.embedding(phrase, self.edges)
        passed = number.float().unsqueeze(-1) - edges[..., :-1]
        # Quantiles that are the same leave a step between them.
        share = (passed / edges.diff(dim=-1).clamp(min=1e-3)).clamp(0, 1)
        found: Tensor = self.of_pieces(share.nan_to_num()) * F.embedding(phrase, made)
        return found


def value_edges(book: TokenBook, clip: float) -> np.ndarray:
    """Return the z-scored quantiles of train of each phrase's code, float64 [P, K + 1].

    Those of a phrase that begins no event with a value are `NEVER`.
    """
    code, share = book.begun
    edges = np.full((len(code), len(QUANTILES)), NEVER)
    for phrase in np.flatnonzero(np.isfinite(share[:, 0])):
        own = np.full(len(QUANTILES), code[phrase])
        quantiles = book.vocabulary.quantiles[code[phrase]]
        edges[phrase] = z_score(quantiles, own, book.vocabulary).clip(-clip, clip)
    return edges


def since_edges() -> np.ndarray:
    """Return log(1 + minutes) at the edges of gaps between events, [1, K + 1].

    The first piece lies before all of them: that there was an event before.
    """
    return np.concatenate([[-1.0, 0.0], np.log1p(GAP_EDGES)])[None]


def since_last(code: Tensor, minute: Tensor) -> Tensor:
    """Return minutes since the token before of the same code, float64 [B, T]; NaN for none.

    `code` [B, T] is -1 for tokens of no code.
    """
    order = code.sort(dim=1, stable=True).indices
    sorted_code, sorted_minute = code.gather(1, order), minute.gather(1, order)
    same = (sorted_code[:, 1:] == sorted_code[:, :-1]) & (sorted_code[:, 1:] >= 0)
    passed = torch.where(same, sorted_minute.diff(dim=1).clamp(min=0), torch.nan)
    return torch.empty_like(minute).scatter_(1, order, F.pad(passed, (1, 0), value=torch.nan))
