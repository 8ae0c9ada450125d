"""When the next event comes: gaps of real records, as the model tells them apart.

The time head gives one number, the mean of log(1 + minutes), from which no gap can be drawn: of
two events at once and one ten hours later it is the middle. So gaps are drawn from those that
followed in real records where the head said about the same. A gap phrase tells a range, and they
are drawn from those within it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ehr_ray.errors import InputError
from ehr_ray.events.tokens import GAP_EDGES, TokenBook
from ehr_ray.families.event_transformer.model import EventTransformer
from ehr_ray.family import Batch

_GROUPS = 20
"""Groups of what the head says, equally large."""
_GAPS = 512
"""Gaps that stand for all of a group, evenly among them."""
_SHARES = (np.arange(_GAPS) + 0.5) / _GAPS


@dataclass(frozen=True, eq=False)
class Clock:
    """Groups of gaps to draw from; P phrases, G groups.

    Args:
        kind: group of each phrase, [P]; -1 where no time passes before it, as before a value. By
            the head it is 0 for all others.
        edges: log(1 + minutes) as the head tells it at which groups part, [G - 1]; None: gaps have
            phrases of their own, and the first group is of events without one.
        gaps: minutes of each group, ascending, float64 [G, 512].
        first_gap: id of the first gap phrase, P without any of their own.
    """

    kind: Tensor
    edges: Tensor | None
    gaps: Tensor
    first_gap: int

    @property
    def by_head(self) -> bool:
        """Whether the time head tells groups apart."""
        return self.edges is not None

    def group(self, phrase: Tensor, before: Tensor, told: Tensor | None) -> Tensor:
        """Return the group of the time until each phrase, -1 for none.

        `before` is the phrase it follows, `told` what the head says there; all broadcast.
        """
        kind = self.kind[phrase]
        if self.edges is None or told is None:
            return torch.where(before >= self.first_gap, -1, kind)
        return torch.where(kind < 0, -1, torch.bucketize(told.double(), self.edges, right=True))

    def longer(self, group: Tensor, least: float) -> Tensor:
        """Return the share of each group's gaps that are longer than `least`; 0 for group -1."""
        share = (self.gaps > least).double().mean(1)
        return torch.where(group < 0, 0.0, share[group])

    def draw(self, group: Tensor, at: Tensor, least: float | None) -> Tensor:
        """Return minutes until each, of `at` in [0, 1), float64 [N]; 0 for group -1.

        Longer than `least`: where no gap of its group is, one of any group, and where none at all
        is, `least` itself.
        """
        rows = self.gaps[group]
        skipped = torch.zeros_like(group) if least is None else (rows <= least).sum(1)
        place = skipped + (at * (_GAPS - skipped)).long()
        drawn = rows.gather(1, place.clamp(max=_GAPS - 1)[:, None]).squeeze(1)
        if least is not None:
            others = self.gaps[self.gaps > least].sort().values
            other = others[(at * len(others)).long()] if len(others) else least
            drawn = torch.where(skipped == _GAPS, other, drawn)
        return torch.where(group < 0, 0.0, drawn)


@torch.no_grad()
def fit_clock(model: EventTransformer, book: TokenBook, batches: Iterable[Batch]) -> Clock:
    """Return the clock of a decoder by the gaps of records.

    Raises InputError where no record has two events.
    """
    own = model.config.gaps == "own"
    kind = torch.from_numpy(np.where(book.begun[0] >= 0, 0, -1))
    first_gap = book.first_gap if own else len(book)
    kind[first_gap:] = 1 + torch.arange(len(kind) - first_gap)
    tells: list[Tensor] = []
    gaps: list[Tensor] = []
    for given in batches:
        batch = model.window(given, None)
        pair = batch["mask"][:, 1:]
        phrase, before = batch["phrase"][:, 1:][pair], batch["phrase"][:, :-1][pair]
        tell = torch.where(before >= first_gap, -1, kind[phrase])
        timed = tell >= 0
        if not own:
            state = model.norm(model.encode(batch)[:, :-1][pair])
            tell = model.next_time(state).squeeze(-1).double()
        tells.append(tell[timed])
        gaps.append(batch["minute"].diff(dim=1).double().clamp(min=0)[pair][timed])
    told, passed = (torch.cat(parts).numpy() if parts else np.zeros(0) for parts in (tells, gaps))
    if not len(passed):
        raise InputError("no record of tuning has two events, whose gap a future could have")
    if own:
        parts = [_of_phrase(g, passed[told == g]) for g in range(1 + len(GAP_EDGES))]
        return Clock(kind, None, torch.from_numpy(np.stack(parts)), first_gap)
    edges = np.unique(np.quantile(told, np.arange(1, _GROUPS) / _GROUPS))
    group = np.searchsorted(edges, told, side="right")
    parts = [passed[group == g] for g in range(len(edges) + 1)]
    table = np.stack([_spread(part if len(part) else passed) for part in parts])
    return Clock(kind, torch.from_numpy(edges), torch.from_numpy(table), first_gap)


def _of_phrase(group: int, passed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the gaps of a gap phrase, evenly over its range where no record has one."""
    if len(passed):
        return _spread(passed)
    if group == 0:
        return np.zeros(_GAPS)
    low = GAP_EDGES[group - 1]
    high = GAP_EDGES[group] if group < len(GAP_EDGES) else 2 * low
    return np.asarray(low + _SHARES * (high - low), np.float64)


def _spread(passed: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.quantile(passed, _SHARES, method="inverted_cdf"), np.float64)
