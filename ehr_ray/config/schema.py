"""What a config of a family is checked against: plain data, so that a check loads no torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ehr_ray.config.schedules import Schedule

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class ConfigSchema(Generic[C]):
    """The part of a family that its `config.py` holds."""

    config: type[C]
    """Frozen dataclass: architecture and transform options; the `model` section of a config."""
    schedules: Mapping[str, Schedule] = field(default_factory=dict)
    """Every scheduled quantity with its default; a config may replace each."""
    schedule_limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest value of the schedules that have one."""
    idle: Callable[[C, bool], Mapping[str, str]] | None = None
    """(config, whether a task is trained) to the paths, as `model.hide`, that change nothing then,
    each with the setting that makes it so: one that is given is refused, and none is searched."""
    untrainable: Callable[[C, bool], str | None] | None = None
    """(config, whether a task is trained) to why nothing can be learned, the path first and what to
    add last; None where something can."""
    undivided: Callable[[C], str | None] | None = None
    """The setting, as `a.b=value`, that gives a config's model a parameter that is a single number,
    which workers cannot share by `cluster.strategy=fsdp`; None where none does."""
    codes: tuple[str, ...] = ()
    """Fields that list codes by name, each of which must be one of the cohort's."""
    takes_task: bool = False
    """Whether the family has a representation that the head of a `task` can read."""
    takes_sets: bool = False
    """Whether the family reads what `expand` writes (`data.expanded`)."""


AnySchema = ConfigSchema[Any]
