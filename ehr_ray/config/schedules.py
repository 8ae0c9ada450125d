"""Quantities that change with the step, as pure functions of it: resume needs only the step."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same value throughout; a plain number in a config means this."""

    __pydantic_config__ = {"extra": "forbid"}

    value: Finite
    """The value."""
    kind: Literal["constant"] = "constant"
    """Says which schedule this is."""

    def at(self, step: int, steps_per_epoch: int, run_steps: int = 1) -> float:  # noqa: ARG002
        """Return the value."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """From `start` to `end` over the first `steps` (or `epochs`), then `end`.

    Without either it lasts as long as the run, and moves with `train.max_epochs`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    end: Finite
    """Value at the end."""
    start: Finite = 0.0
    """Value at the start."""
    steps: Positive | None = None
    """Length in optimizer steps; or give `epochs`; null: the run's."""
    epochs: Positive | None = None
    """Length in passes over the train split; or give `steps`."""
    shape: Literal["linear", "cosine"] = "linear"
    """A straight line, or half a cosine."""
    kind: Literal["ramp"] = "ramp"
    """Says which schedule this is."""

    def __post_init__(self) -> None:
        """Check that at most one length is given."""
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give its length as either steps or epochs, or neither: the run's")

    def at(self, step: int, steps_per_epoch: int, run_steps: int = 1) -> float:
        """Return the value at `step` (0-based) of a run of `run_steps`."""
        own = self.steps is not None or self.epochs is not None
        length = _length(self.steps, self.epochs, steps_per_epoch) if own else float(run_steps)
        done = min(1.0, step / length)
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """Cyclical annealing (Fu et al. 2019, eq. 5): each period waits, ramps to `end`, holds."""

    __pydantic_config__ = {"extra": "forbid"}

    end: Finite
    """Value at the end."""
    start: Finite = 0.0
    """Value at the start."""
    steps: Positive | None = None
    """Length in optimizer steps; or give `epochs`."""
    epochs: Positive | None = None
    """Length in passes over the train split; or give `steps`."""
    wait_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a period spent at `start` before the ramp."""
    ramp_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of a period spent ramping."""
    cycles: Annotated[int, Field(ge=1)] | None = None
    """Periods after which it stays at `end`; None: never."""
    kind: Literal["cycle"] = "cycle"
    """Says which schedule this is."""

    def __post_init__(self) -> None:
        """Check that exactly one length is given, and that a period is long enough."""
        _one_length(self.steps, self.epochs)
        if self.wait_ratio + self.ramp_ratio > 1:
            raise ValueError("wait_ratio and ramp_ratio must add up to at most 1")

    def at(self, step: int, steps_per_epoch: int, run_steps: int = 1) -> float:  # noqa: ARG002
        """Return the value at `step` (0-based)."""
        period = self.period(steps_per_epoch)
        if self.cycles is not None and step >= period * self.cycles:
            return self.end
        done = ((step % period) / period - self.wait_ratio) / self.ramp_ratio
        done = min(1.0, max(0.0, done))
        return self.start + (self.end - self.start) * done

    def period(self, steps_per_epoch: int) -> float:
        """Return the steps of a cycle."""
        return _length(self.steps, self.epochs, steps_per_epoch)


Schedule = Constant | Ramp | Cycle


def _one_length(steps: float | None, epochs: float | None) -> None:
    if (steps is None) == (epochs is None):
        raise ValueError("give its length as either steps or epochs")


def _length(steps: float | None, epochs: float | None, steps_per_epoch: int) -> float:
    return steps if steps is not None else (epochs or 1.0) * steps_per_epoch
