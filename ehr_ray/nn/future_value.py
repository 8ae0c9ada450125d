"""What each of many codes is measured at in the next hours: a normal distribution, and its loss.

B patients, M moments, K windows, C codes, D width, R rank, N measurements. The mean of all that is
measured in a window is asked, rather than what is nearest to its end: rare laboratory values lie
near no hour, and frequent ones say more together than one of them does.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from ehr_ray.nn.moment_heads import ENTRIES, RANK, chunks_of, sum_over

STATISTICS: Final = ("future_value.mean", "future_value.log_scale", "future_value.carried")
"""Buffers that are fitted on train, as a model names them that calls the head `future_value`."""
LIMIT: Final = 2.0
"""Largest change of a log standard deviation from that of train."""
FLOOR: Final = 0.05
"""Standard deviation that is part of every other: a code that never changes would have none."""
_WHOLE: Final = 2.0**24
"""What makes a whole number of every float16."""


class ValueTruth(NamedTuple):
    """What was measured after M moments of B patients, and last before."""

    value: Tensor
    """Mean of a code's values within a window, float32 [B, M, K, C]; 0 without any."""
    asked: Tensor
    """Whether there are any, bool [B, M, K, C]."""
    last: Tensor
    """The last value up to the moment, float32 [B, M, C]; 0 without any."""
    known: Tensor
    """Whether there is one, bool [B, M, C]."""


class FutureValue(nn.Module):
    """Mean and log standard deviation by window and code: those of train, and what a state adds.

    What was measured last is not given to it, so that a state has to hold it; it is what the
    baseline knows: a line of train through it, of each window and code, and without it the mean.

    Args:
        width: D of the states that it reads.
        codes: C.
        hours: at which a window ends and the next one begins, ascending, [K].
    """

    edges: Tensor
    mean: Tensor
    log_scale: Tensor
    carried: Tensor

    def __init__(self, width: int, codes: int, hours: Sequence[float]) -> None:
        super().__init__()
        shape = len(hours), codes
        self.register_buffer("edges", torch.tensor((0.0, *hours)), persistent=False)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("log_scale", torch.zeros(shape))
        # Slope, intercept and log standard deviation of a line through the last value.
        self.register_buffer("carried", torch.stack([torch.ones(shape), *torch.zeros(2, *shape)]))
        self.by_window = nn.Linear(width, 2 * len(hours) * RANK)
        self.codes = nn.Parameter(0.1 * torch.randn(codes, RANK) / RANK**0.5)

    def forward(self, state: Tensor, truth: ValueTruth) -> dict[str, Tensor]:
        """Return sums over what is asked of a state [B, M, D], each [].

        `future_value` is -log density, `future_value_baseline` that of the baseline, and `values`
        how many are asked. Of many moments a chunk is made at a time.
        """
        flat = (part.flatten(0, 1) for part in truth)
        rows = ENTRIES // (2 * self.mean.numel())
        chunks = chunks_of(rows, state.flatten(0, 1), *flat)
        with torch.no_grad():
            baseline = sum_over([chunk[1:] for chunk in chunks], self._baseline)
        return {
            "future_value": sum_over(chunks, self._nats),
            "future_value_baseline": baseline,
            "values": truth.asked.sum().float(),
        }

    def normal(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and log standard deviations, float32 [N, K, C], of a state [N, D]."""
        product = self.by_window(state).unflatten(-1, (-1, RANK)) @ self.codes.T
        moved, wider = product.float().chunk(2, 1)
        mean = self.mean + self.log_scale.exp() * moved
        return mean, self.log_scale + LIMIT * torch.tanh(wider / LIMIT)

    def _nats(
        self, state: Tensor, value: Tensor, asked: Tensor, _last: Tensor, _known: Tensor
    ) -> Tensor:
        return (negative_log_density(value, *self.normal(state)) * asked).sum()

    def _baseline(self, value: Tensor, asked: Tensor, last: Tensor, known: Tensor) -> Tensor:
        slope, intercept, log_scale = self.carried
        known, last = known.unsqueeze(1), last.unsqueeze(1)
        mean = torch.where(known, intercept + slope * last, self.mean)
        log_scale = torch.where(known, log_scale, self.log_scale)
        return (negative_log_density(value, mean, log_scale) * asked).sum()

    @torch.no_grad()
    def fit(self, truths: Iterable[ValueTruth]) -> None:
        """Set mean, deviation and line to those of some patients, by least squares.

        One value with the variance 1, and the line of slope 1, count beside them: where nobody was
        measured the last value is carried, and the mean is 0.
        """
        every = self.mean.new_zeros(6, *self.mean.shape, dtype=torch.float64)
        known = torch.zeros_like(every)
        rows = ENTRIES // (2 * every.numel())  # they are 64 bits
        flat = ((part.flatten(0, 1) for part in truth) for truth in truths)
        for value, asked, last, has in (c for one in flat for c in chunks_of(rows, *one)):
            x, y = last.double().unsqueeze(1).expand_as(value), value.double()
            for total, there in ((every, asked), (known, asked & has.unsqueeze(1))):
                parts = (torch.ones_like(y), x, y, x * x, x * y, y * y)
                total += torch.stack([(part * there).sum(0) for part in parts])
        count, _, mean, _, _, variance = _moments(every)
        self.mean.copy_(mean)
        self.log_scale.copy_(0.5 * ((variance + 1) / (count + 1)).log())
        count, x, y, xx, xy, yy = _moments(known)
        slope = (xy + 1) / (xx + 1)
        left = (yy - 2 * slope * xy + slope.square() * xx).clamp(min=0)
        scale = 0.5 * ((left + 1) / (count + 1)).log()
        self.carried.copy_(torch.stack([slope, y - slope * x, scale]))


def negative_log_density(value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return -log of the normal density, of which `FLOOR` is a part of the deviation."""
    variance = (2 * log_scale).exp() + FLOOR**2
    return 0.5 * ((2 * torch.pi * variance).log() + (value - mean).square() / variance)


def values_after(
    code: Tensor,
    minute: Tensor,
    value: Tensor,
    moment: Tensor,
    edges: Tensor,
    codes: int,
    *,
    closed: bool,
) -> ValueTruth:
    """Return what the windows after each moment [B, M] hold of measurements [B, N] in time order.

    Args:
        code: of each measurement, 0 to C - 1; C for what counts as none.
        minute: of each, ascending; infinity for padding.
        value: of each, float32; a float16, so that sums are exact in any order.
        moment: minutes.
        edges: hours after it at which windows begin and end, [K + 1], the first of them 0.
        codes: C.
        closed: whether a window holds what comes at the very minute of its end, and the moment what
            comes at its own, or else the window after it.
    """
    edge = moment.unsqueeze(-1) + 60 * edges.to(moment.dtype)
    bound = torch.searchsorted(minute, edge.flatten(1), right=closed).view(edge.shape)
    kind, order = code.sort(dim=1, stable=True)
    whole = (value * _WHOLE).long().gather(1, order)
    total = nn.functional.pad(whole.cumsum(1), (1, 0))
    sorted_value = value.gather(1, order)
    # Measurements in order of code, then of time: those of a code before a bound are one stretch.
    length = code.shape[1] + 1
    key = kind * length + order
    step = max(1, ENTRIES // (4 * bound.numel()))  # they are 64 bits, and there are two
    parts = []
    for first in range(0, codes, step):
        start = length * torch.arange(first, min(first + step, codes), device=code.device)
        asked = (bound.unsqueeze(-1) + start).flatten(1)
        place = torch.searchsorted(key, asked).view(*bound.shape, -1)
        sums = total.gather(1, place.flatten(1)).view(place.shape).diff(dim=2)
        count = place.diff(dim=2)
        mean = sums.double() / (_WHOLE * count.clamp(min=1))
        begun = torch.searchsorted(key, start.expand(len(key), -1).contiguous())
        before = place[:, :, 0]
        last = sorted_value.gather(1, (before - 1).clamp(min=0).flatten(1)).view(before.shape)
        known = before > begun.unsqueeze(1)
        parts.append((mean.float(), count > 0, torch.where(known, last, 0.0), known))
    return ValueTruth(*(torch.cat(part, -1) for part in zip(*parts, strict=True)))


def _moments(sums: Tensor) -> tuple[Tensor, ...]:
    """Return count, means of x and y, and their sums of squares about these: xx, xy and yy."""
    count, x, y, xx, xy, yy = sums
    safe = count.clamp(min=1)
    mean_x, mean_y = x / safe, y / safe
    about = (xx - x * mean_x).clamp(min=0), xy - x * mean_y, (yy - y * mean_y).clamp(min=0)
    return count, mean_x, mean_y, *about
