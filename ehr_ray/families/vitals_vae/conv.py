"""Multi-scale convolutions over hours: branches from hours to days, and a linear path.

B patients, H hours, V vitals, Z latent.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ehr_ray.families.vitals_vae.config import Layers, VitalsVAEConfig

GROUPS = 4
SLOPE = 0.2


def lengths(layers: Layers, hours: int) -> list[int]:
    """Return the lengths of a branch's signals, from `hours` down; none is shorter than 2."""
    sizes = [hours]
    for _, stride in layers:
        sizes.append(max(2, -(-sizes[-1] // stride)))
    return sizes


def fitted(kernel: int, length: int) -> int:
    """Return the kernel cut to what can reach data in a signal of that length; it stays odd."""
    return min(kernel, 2 * length - 1)


class Conv(nn.Conv1d):
    """A convolution over hours, [B, C, H] to [B, C', H'].

    On a CPU the channels of an hour lie side by side in it: its kernels are then faster by more
    than the copies cost, an eighth of a whole training step.
    """

    decayed = ("weight",)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not input.is_cpu:
            return super()._conv_forward(input, weight, bias)
        image, kernel = (
            part.unsqueeze(2).contiguous(memory_format=torch.channels_last)
            for part in (input, weight)
        )
        return F.conv2d(image, kernel, bias, (1, *self.stride), (0, *self.padding)).squeeze(2)


class Down(nn.Module):
    """A branch of the encoder, pooled to a few time bins: [B, C, H] to [B, W * bins]."""

    def __init__(self, layers: Layers, inputs: int, config: VitalsVAEConfig) -> None:
        super().__init__()
        sizes = lengths(layers, config.num_hours)
        widths = [inputs, *[config.width // 2] * (len(layers) > 1)]
        widths += [config.width] * (len(layers) + 1 - len(widths))
        blocks: list[nn.Module] = []
        for (kernel, stride), length, (before, after) in zip(
            layers, sizes, itertools.pairwise(widths), strict=False
        ):
            size = fitted(kernel, length)
            step = min(stride, max(1, length // 2))
            blocks.append(Conv(before, after, size, step, size // 2))
            blocks += [_norm(after), nn.LeakyReLU(SLOPE)]
        self.layers = nn.Sequential(*blocks)
        self.bins = config.bins

    def forward(self, x: Tensor) -> Tensor:
        """Return what the branch sees of each time bin."""
        return binned(self.layers(x), self.bins).flatten(1)


class Up(nn.Module):
    """A branch of the decoder: the encoder's lengths in reverse, ending at every hour.

    A stride is undone by interpolation, so that each signal spans all hours: a transposed
    convolution ends where its stride does, and padding the rest would be constant. A kernel of k
    over fine steps is one of k / stride over the coarse steps before they are stretched. Of all
    branches one draws every hour; the others draw at their own step.
    """

    def __init__(
        self, layers: Layers, inputs: int, config: VitalsVAEConfig, *, every_hour: bool
    ) -> None:
        super().__init__()
        self.width = config.width
        self.sizes = lengths(layers, config.num_hours)[:0:-1]
        self.hours = config.num_hours
        self.start = min(config.bins, self.sizes[0])
        self.unfold = nn.Linear(inputs, self.width * self.start)
        kernels = [max(3, kernel // stride // 2 * 2 + 1) for kernel, stride in layers]
        widths = [self.width, *[self.width // 2] * (len(kernels) - 1), self.width // 4]
        blocks: list[nn.Module] = []
        for kernel, length, (before, after) in zip(
            kernels[::-1], self.sizes, itertools.pairwise(widths), strict=True
        ):
            size = fitted(kernel, length)
            conv = Conv(before, after, size, padding=size // 2)
            # No norm before the output: it would give every patient's detail the same size.
            norm = nn.Identity() if after == widths[-1] else _norm(after)
            blocks.append(nn.Sequential(conv, norm, nn.LeakyReLU(SLOPE)))
        self.blocks = nn.ModuleList(blocks)
        self.every_hour = every_hour
        self.out = Conv(widths[-1], config.num_vitals, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """Return the branch's curves, [B, V, H]."""
        x = F.leaky_relu(self.unfold(z), SLOPE).unflatten(1, (self.width, self.start))
        for block, size in zip(self.blocks, self.sizes, strict=True):
            x = block(stretched(x, size))
        if self.every_hour:
            return self.out(stretched(x, self.hours))
        return stretched(self.out(x), self.hours)


class ConvEncoder(nn.Module):
    """Channels [B, 3 V, H] to one vector a patient: `width` from the branches, `width` linear."""

    def __init__(self, config: VitalsVAEConfig) -> None:
        super().__init__()
        inputs = 3 * config.num_vitals
        self.stem = nn.Sequential(Conv(inputs, config.stem, 1), nn.LeakyReLU(SLOPE))
        self.branches = nn.ModuleDict(
            {scale.name: Down(scale.layers, config.stem, config) for scale in config.scales}
        )
        pooled = len(self.branches) * config.width * config.bins
        self.merge = nn.Sequential(nn.Linear(pooled, config.width), nn.LeakyReLU(SLOPE))
        self.bins = min(config.trend_bins, config.num_hours)
        self.trend = nn.Linear(inputs * self.bins, config.width)
        self.width = 2 * config.width

    def forward(self, channels: Tensor) -> Tensor:
        """Return what all branches and the linear path see, [B, 2 width]."""
        x = self.stem(channels)
        pooled = torch.cat([branch(x) for branch in self.branches.values()], 1)
        trend = binned(channels, self.bins).flatten(1)
        return torch.cat([self.merge(pooled), self.trend(trend)], 1)


class ConvDecoder(nn.Module):
    """A latent to the merged curves and those of each branch.

    All share a linear trend through a few knots; a branch adds its own detail to it, and the merged
    curve a learned mixture of all details.
    """

    def __init__(self, config: VitalsVAEConfig, inputs: int) -> None:
        super().__init__()
        self.vitals, self.hours = config.num_vitals, config.num_hours
        self.knots = min(config.trend_bins, config.num_hours)
        self.trend = nn.Linear(inputs, self.vitals * self.knots)
        self.branches = nn.ModuleDict(
            {
                scale.name: Up(scale.layers, inputs, config, every_hour=place == 0)
                for place, scale in enumerate(config.scales)
            }
        )
        self.mix = Conv(len(self.branches) * self.vitals, self.vitals, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the merged curves [B, H, V] and the branches' [branches, B, H, V]."""
        trend = stretched(self.trend(z).unflatten(1, (self.vitals, self.knots)), self.hours)
        details = [branch(z) for branch in self.branches.values()]
        merged = trend + self.mix(torch.cat(details, 1))
        branches = torch.stack([trend + detail for detail in details])
        return merged.transpose(1, 2), branches.transpose(2, 3)


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(GROUPS if channels % GROUPS == 0 else 1, channels)


def binned(x: Tensor, bins: int) -> Tensor:
    """Return the means of [B, C, H] over time bins, [B, C, bins]."""
    return _linear(lambda signal: F.adaptive_avg_pool1d(signal, bins), x)


def stretched(x: Tensor, length: int) -> Tensor:
    """Return [B, C, H] drawn at `length` steps, by lines."""
    return _linear(
        lambda signal: F.interpolate(signal, length, mode="linear", align_corners=True), x
    )


def _linear(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return a linear function of signals [B, C, H].

    On a GPU its gradient adds in another order each time: where that is refused, it is multiplied
    with the function of each hour alone, which gives the same up to rounding.
    """
    if x.is_cpu or not torch.are_deterministic_algorithms_enabled():
        return function(x)
    with torch.no_grad():
        alone = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        matrix = function(alone.unsqueeze(0))[0]
    with torch.autocast(x.device.type, enabled=False):  # these functions keep the type of `x`
        return x @ matrix
