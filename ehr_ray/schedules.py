"""Quantities that change with the step, as pure functions of it: resume needs only the step."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same value throughout; a plain number in a config means this."""

    __pydantic_config__ = {"extra": "forbid"}

    value: float
    kind: Literal["constant"] = "constant"

    def at(self, step: int, steps_per_epoch: int) -> float:  # noqa: ARG002
        """Return the value."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """From `start` to `end` over the first `steps` (or `epochs`), then `end`.

    `shape` is linear or half a cosine.
    """

    __pydantic_config__ = {"extra": "forbid"}

    end: float
    start: float = 0.0
    steps: Positive | None = None
    epochs: Positive | None = None
    shape: Literal["linear", "cosine"] = "linear"
    kind: Literal["ramp"] = "ramp"

    def __post_init__(self) -> None:
        """Check that exactly one length is given."""
        _one_length(self.steps, self.epochs)

    def at(self, step: int, steps_per_epoch: int) -> float:
        """Return the value at `step` (0-based)."""
        done = min(1.0, step / _length(self.steps, self.epochs, steps_per_epoch))
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """Cyclical annealing (Fu et al. 2019, eq. 5): every period ramps `start` to `end`, then holds.

    `ramp_ratio` is the share of a period spent ramping; after `cycles` periods (None: never) it
    stays at `end`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    end: float
    start: float = 0.0
    steps: Positive | None = None
    epochs: Positive | None = None
    ramp_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    cycles: Annotated[int, Field(ge=1)] | None = None
    kind: Literal["cycle"] = "cycle"

    def __post_init__(self) -> None:
        """Check that exactly one length is given."""
        _one_length(self.steps, self.epochs)

    def at(self, step: int, steps_per_epoch: int) -> float:
        """Return the value at `step` (0-based)."""
        period = _length(self.steps, self.epochs, steps_per_epoch)
        if self.cycles is not None and step >= period * self.cycles:
            return self.end
        done = min(1.0, (step % period) / period / self.ramp_ratio)
        return self.start + (self.end - self.start) * done


Schedule = Constant | Ramp | Cycle


def _one_length(steps: float | None, epochs: float | None) -> None:
    if (steps is None) == (epochs is None):
        raise ValueError("give its length as either steps or epochs")


def _length(steps: float | None, epochs: float | None, steps_per_epoch: int) -> float:
    return steps if steps is not None else (epochs or 1.0) * steps_per_epoch
