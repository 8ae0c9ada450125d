"""Time of a function, as the median of some rounds, and functions in a process of their own."""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

Numbers = dict[str, float]


def cpu_seconds(function: Callable[[], Any], rounds: int) -> float:
    """Return the CPU seconds of a call, of all threads: the median of rounds."""
    return _median(function, rounds, time.process_time)


def wall_seconds(function: Callable[[], Any], rounds: int) -> float:
    """Return the seconds of a call by the clock: the median of rounds."""
    return _median(function, rounds, time.perf_counter)


def _median(function: Callable[[], Any], rounds: int, clock: Callable[[], float]) -> float:
    spent = []
    for _ in range(rounds):
        started = clock()
        function()
        spent.append(clock() - started)
    return statistics.median(spent)


def in_process(function: Callable[..., Any], *args: Any) -> Any:
    """Return what a function gives in a process of its own.

    It is spawned: a fork would begin with this process's memory, threads and imports.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, args)
