"""How `crossval` divides a cohort, and what it changes beside the experiment itself."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from ehr_ray.config.types import PositiveInt

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
"""Of a variant: it is part of file names."""


@dataclass(frozen=True, kw_only=True)
class CrossvalConfig:
    """Repeated folds, and the ablations that may be run on them."""

    __pydantic_config__ = {"extra": "forbid"}

    folds: Annotated[int, Field(ge=2)] = 5
    """Parts of the cohort; each is tested once by models trained on the others."""
    repeats: PositiveInt = 2
    """Divisions anew."""
    members: PositiveInt = 1
    """Models a fold, of other seeds and tuning patients, whose probabilities are averaged."""
    tuning_share: Annotated[float, Field(ge=0.01, le=0.5)] = 0.15
    """Share of a fold's training part that stops training, calibrates and gives thresholds: one
    part of the whole number of equal parts that comes nearest."""
    tasks: tuple[str, ...] = ()
    """Label files that are judged; none: those the model answers by itself, else the one that
    `evaluate` takes."""
    variants: dict[Name, dict[str, Any]] = field(default_factory=dict)
    """Ablations by name: dotted paths of the config and their values, as in
    `no_gate: {model.gate: false}`."""
    chosen: tuple[str, ...] = ()
    """Names of the variants that are run (`--variants`)."""
    variant_repeats: PositiveInt = 1
    """Repeats that variants are run on, at most."""
