"""CPU seconds of several ways to do the same work, in turn, and libraries that may be missing."""

import importlib
import resource
import statistics
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Final

Figures = dict[str, float | str]
"""A text where a figure was left out, and why."""
ROUNDS: Final = 3
INSTALL: Final = "pip install 'ehr_ray[peers]'"


def cpu_seconds() -> float:
    """Return user and system seconds of this process, all its threads, and of ended children."""
    both = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in both)


def in_turn(ways: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the median CPU seconds of each way, taken one after the other in every round.

    What a way returns is dropped; its first call should have been made before, to warm up.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = cpu_seconds()
            way()
            spent[name].append(cpu_seconds() - began)
    return {name: statistics.median(times) for name, times in spent.items()}


def library(name: str) -> ModuleType | str:
    """Return a module, or, where it is not there, why its figure is left out."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        return f"left out: {missing} is not installed; {INSTALL}"
