"""What a benchmark asks of the processes of a run: notes of starts and steps, and a core for each.

A folder holds one file for each start of each rank; a killed process leaves what it has written.
"""

import contextlib
import json
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from ehr_ray.storage import files


class StartFile:
    """Writes one start of a rank: first who it is, then (rank 0) a line for each step."""

    def __init__(self, folder: Path, rank: int, world: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        now = time.monotonic()
        final = folder / f"{now:.6f}-{rank}.jsonl"
        first = {"rank": rank, "world": world, "pid": os.getpid(), "time": now}
        files.write_text(final, json.dumps(first) + "\n")
        self._file = final.open("a", buffering=1)

    def step(self, step: int) -> None:
        """Note that a step is done."""
        self._file.write(json.dumps({"step": step, "time": time.monotonic()}) + "\n")


@dataclass(frozen=True)
class Start:
    """One start of a rank, as it was noted; times are seconds of the machine's steady clock."""

    rank: int
    world: int
    pid: int
    time: float
    steps: list[int] = field(default_factory=list)
    """Steps it did, in order; of rank 0 only."""
    ended: list[float] = field(default_factory=list)
    """When each of them ended."""


def read_starts(folder: Path, since: float = -math.inf) -> list[Start]:
    """Return the starts noted in a folder, oldest first; those before a time are not read."""
    found = []
    times = {path: float(path.stem.partition("-")[0]) for path in folder.glob("*.jsonl")}
    for path in sorted((path for path in times if times[path] > since), key=times.__getitem__):
        whole = path.read_text().rpartition("\n")[0]  # a line may still be on its way
        first, *steps = map(json.loads, whole.splitlines())
        noted = [int(step["step"]) for step in steps], [step["time"] for step in steps]
        found.append(Start(**first, steps=noted[0], ended=noted[1]))
    return found


def keep_to_core(index: int) -> None:
    """Keep this process, with all threads it has and will have, to one of its cores.

    Without it one worker is more than one core's work: its loader's and Ray's threads take what
    they need of the second, so that two workers cannot seem twice as fast.
    """
    cores = sorted(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), {cores[index % len(cores)]})
