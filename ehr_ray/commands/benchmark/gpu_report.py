"""What `benchmark --only gpu` knows so far: figures, faults, and the time that is left."""

import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

import torch

Figures = dict[str, float | str]
GRACE: Final = 30.0
"""Seconds after the limit at which what still runs is ended."""


@dataclass
class Report:
    """Figures so far, and what was found wrong; `kept` is told of them after each part."""

    limit: float = 3600.0
    """Seconds since `began`, after which no part is begun."""
    kept: Callable[[Figures], None] = lambda _figures: None
    figures: Figures = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _done: set[str] = field(default_factory=set)
    _at: str = "start"
    _until: float = float("inf")

    @property
    def left(self) -> float:
        """Seconds until `limit` of them are over."""
        return self.began + self.limit - time.monotonic()

    @property
    def part_left(self) -> float:
        """Seconds the part that runs may still take: twice those it was expected to, at most."""
        return min(self.left, self._until - time.monotonic())

    def part(
        self,
        name: str,
        seconds: float,
        work: Callable[..., None],
        *given: Any,
        needs: str | None = None,
        checks: bool = True,
    ) -> None:
        """Do a part that may take so many seconds, if so many are left: `work(*given)`.

        An error ends the part alone. Its traceback is let go, and with it the memory it holds.
        A part may have parts. It is left out too where the part that it `needs` has not come to its
        end. What is left out is a fault, unless nothing but speed was to be measured: `checks`.
        """
        before = self._at, self._until
        if why := self._hindered(seconds, needs):
            self.figures[name] = f"left out: {why}"
            if checks:
                self.faults.append(f"{name}: not checked, {why}")
        else:
            self._at, self._until = name, time.monotonic() + 2 * seconds
            try:
                work(*given)
                self._done.add(name)
            except Exception as error:  # of torch, of a driver, of memory: whatever it is
                lines = str(error).strip().splitlines() or [""]
                self.faults.append(f"{name}: {type(error).__name__}: {lines[0]}")
        self._at, self._until = before
        gc.collect()
        with contextlib.suppress(RuntimeError):  # a GPU that has failed says so again
            torch.cuda.empty_cache()
        self.kept(self.result())

    def _hindered(self, seconds: float, needs: str | None) -> str:
        """Return why a part is left out, "" where it is not."""
        if needs is not None and needs not in self._done:
            return f"{needs} has not come to its end"
        return "no time left" if self.left < seconds else ""

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """End the process where it is not through within the limit: a part may hang."""
        timer = threading.Timer(max(0.0, self.left) + GRACE, self.give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def give_up(self) -> None:
        """Keep what is known, say where the time was lost, and end the process: exit code 1."""
        fault = f"{self._at}: not over {self.limit + GRACE:.0f} s after the start, and ended"
        self.faults.append(fault)
        try:
            with contextlib.suppress(Exception):  # a full disk is no reason to hang on
                self.kept(self.result())
            sys.stderr.write(f"--only gpu: {'; '.join(self.faults)}\n")
            sys.stderr.flush()
        finally:
            os._exit(1)  # a thread that waits for a GPU hears nothing else

    def result(self) -> Figures:
        """Return the figures, the seconds in all, what was left out and the faults."""
        found = {**self.figures, "seconds in all": time.monotonic() - self.began}
        told = (f"{n} ({v.partition(': ')[2]})" for n, v in found.items() if _left_out(v))
        if left_out := "; ".join(told):
            found["left out"] = left_out
        return found | ({"faults": "; ".join(self.faults)} if self.faults else {})

    def check(self, name: str, value: float, limit: float, where: str = "") -> None:
        """Keep a figure that must not be above a limit; `where` it is found goes into the fault."""
        self.figures[name] = value
        if not value <= limit:
            of = f" ({where})" if where else ""
            self.faults.append(f"{name}{of}: {value:.3g}, above {limit:.3g}")

    def aim(self, name: str, value: float, least: float) -> None:
        """Keep a figure, and beside it whether it is below a goal, which is no fault."""
        self.figures[name] = value
        if not value >= least:
            self.figures[f"{name}, goal missed"] = f"below {least:g}"


def _left_out(value: float | str) -> TypeGuard[str]:
    return isinstance(value, str) and value.startswith("left out: ")
