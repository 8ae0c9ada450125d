"""Search domains as plain data, so that configs and families need no Ray."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ehr_ray.errors import ConfigError


@dataclass(frozen=True)
class Uniform:
    """A float drawn evenly from [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class LogUniform:
    """A float whose logarithm is drawn evenly from [log low, log high]."""

    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """One of the listed values."""

    values: tuple[Any, ...]


Domain = Uniform | LogUniform | Choice


def parse_domain(raw: Any, at: str) -> Domain:
    """Read `{uniform: [a, b]}`, `{loguniform: [a, b]}`, `{choice: [...]}` or a plain list."""
    if isinstance(raw, list):
        raw = {"choice": raw}
    if isinstance(raw, Mapping) and len(raw) == 1:
        kind, value = next(iter(raw.items()))
        if kind == "choice" and isinstance(value, list) and value:
            return Choice(tuple(value))
        if kind in ("uniform", "loguniform") and isinstance(value, list) and len(value) == 2:
            low, high = (_number(v) for v in value)
            if -math.inf < low < high < math.inf and (low > 0 or kind == "uniform"):
                return Uniform(low, high) if kind == "uniform" else LogUniform(low, high)
    raise ConfigError(
        f"{at}: not a search domain: {raw!r}; write a list of choices, "
        "{uniform: [low, high]} or {loguniform: [low, high]} with low < high"
    )


def _number(value: Any) -> float:
    """Return the number YAML meant (it reads 1e-3 as text); nan, which has no order, for others."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
