"""`benchmark --only faults`: what a run loses when a worker is killed again and again.

The same experiment is trained undisturbed and under a schedule of kills. It must end with the very
same weights; goodput is the time of the steps that count over the time the run took.
"""

import contextlib
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from ehr_ray.errors import RunError
from ehr_ray.experiment import Experiment, parse
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.training.launch import fit
from ehr_ray.runtime.training.start_log import Start, read_starts
from ehr_ray.runtime.training.worker import Job
from ehr_ray.train.task import family_of

Numbers = dict[str, float]
Due = Callable[[int, Start], bool]
"""Whether the next worker is to be killed, by the kills so far and rank 0's current start."""
EVERY_SECONDS = 20.0
SECONDS = 90.0
"""About how long the undisturbed run is; the other takes some times as long."""
PACE_STEPS = 40
"""Steps of the run that tells how many make up those seconds."""
REPORT_STEPS = 5
"""So few that a report falls into the seconds between a start and the next kill."""
WORKERS = 2
DOWN = "seconds from a kill to the next step, median"


@dataclass
class Kills:
    """The kills of a run: when, and whom."""

    times: list[float] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)


def fault_speed(cohort: Path, place: Path, seconds: float = SECONDS) -> Numbers:
    """Train undisturbed and with a worker killed every 20 seconds; RunError if weights differ."""
    experiment = _experiment(cohort, place, PACE_STEPS)
    with prepared(experiment, family_of(experiment), on_ray=True) as data:
        pace, whole, killed = place / "pace", place / "whole", place / "killed"
        train_noted(experiment, data, pace)
        ended_at = next(start.ended for start in read_starts(_notes(pace)) if start.rank == 0)
        steps = int(seconds * (len(ended_at) - 1) / (ended_at[-1] - ended_at[0]))
        experiment = _experiment(cohort, place, max(PACE_STEPS, steps))
        began = time.monotonic()
        train_noted(experiment, data, whole)
        middle = time.monotonic()
        kills = train_noted(experiment, data, killed, every(EVERY_SECONDS, middle))
        ended = time.monotonic()
    if not same_weights(whole, killed):
        raise RunError(
            f"after {len(kills.times)} kills the weights differ from those of an undisturbed run"
        )
    alone = goodput(_notes(whole), began, middle)
    down = down_times(_notes(killed), kills.times)
    return {
        **{
            f"undisturbed, {name}": value for name, value in alone.items() if "repeated" not in name
        },
        **goodput(_notes(killed), middle, ended),
        "kills": float(len(kills.times)),
        **({DOWN: statistics.median(down)} if down else {}),
        "weights equal to those undisturbed": 1.0,
    }


def train_noted(experiment: Experiment, data: Prepared, run: Path, due: Due | None = None) -> Kills:
    """Train into a folder with notes of every start; kill a worker whenever one is due."""
    run.mkdir(parents=True, exist_ok=True)
    notes = _notes(run)
    job = Job(experiment, data, run, run / ".progress.jsonl", None, notes)
    with _killing(notes, due) as kills:
        fit(job)
    return kills


def every(seconds: float, began: float) -> Due:
    """Return the schedule of a kill every so many seconds; where nobody is up then, of none."""

    def due(_: int, start: Start) -> bool:
        return (time.monotonic() - began) // seconds > (start.time - began) // seconds

    return due


@contextlib.contextmanager
def _killing(notes: Path, due: Due | None) -> Iterator[Kills]:
    """Kill one rank after the other, whenever due, while the block runs.

    Only a process that started after the last kill is killed, so none that has ended and whose
    number may be another's by now.
    """
    kills, stop = Kills(), threading.Event()

    def watch(due: Due) -> None:
        while not stop.wait(0.1):
            last = max(kills.times, default=0.0)
            group = {start.rank: start for start in read_starts(notes, last)}
            world = max((start.world for start in group.values()), default=0)
            if 0 < world == len(group) and due(len(kills.times), group[0]):
                rank = len(kills.times) % world
                with contextlib.suppress(ProcessLookupError):
                    os.kill(group[rank].pid, signal.SIGKILL)
                    kills.times.append(time.monotonic())
                    kills.ranks.append(rank)

    thread = threading.Thread(target=watch, args=(due,), daemon=True)
    if due is not None:
        thread.start()
    try:
        yield kills
    finally:
        stop.set()
        if due is not None:
            thread.join()


def goodput(notes: Path, began: float, ended: float) -> Numbers:
    """Return the time of the steps that count, each once, over all the time; and steps repeated.

    A step's time is from the end of the one before, reports between them included; the first of a
    start, which nothing precedes, counts as the median, or as all the time since its start was
    noted where that is less: no second counts twice, so that goodput is below 1.
    """
    starts = [start for start in read_starts(notes) if start.rank == 0]
    times: dict[int, float] = {}
    every_time = np.concatenate([np.diff(start.ended) for start in starts])
    usual = float(np.median(every_time))
    for start in starts:
        first = [min(usual, ended - start.time) for ended in start.ended[:1]]
        times.update(zip(start.steps, [*first, *np.diff(start.ended)], strict=True))
    done = sum(len(start.steps) for start in starts)
    return {
        "seconds": ended - began,
        "steps": float(len(times)),
        "ms per step, median": 1000 * usual,
        "goodput": float(sum(times.values())) / (ended - began),
        "steps repeated": float(done - len(times)),
    }


def same_weights(a: Path, b: Path) -> bool:
    """Whether the last states of two runs hold the same weights, bit for bit."""
    left, right = (
        load_file(max((run / "state").glob("[0-9]*")) / "model.safetensors") for run in (a, b)
    )
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def down_times(notes: Path, kills: Sequence[float]) -> list[float]:
    """Return the seconds from each kill to the first step that ended after it, if one did."""
    ended = sorted(t for start in read_starts(notes) for t in start.ended)
    return [ended[int(np.searchsorted(ended, kill))] - kill for kill in kills if kill < ended[-1]]


def _notes(run: Path) -> Path:
    return run / "starts"


def _experiment(cohort: Path, place: Path, steps: int) -> Experiment:
    return parse(
        {
            "family": "set_vae",
            "name": "faults",
            "output": str(place / "runs"),
            "model": {"sets_per_patient": 4, "width": 64, "reduced": 64, "latent": 16},
            "data": {"cohort": str(cohort.absolute()), "batch_size": 32},
            "train": {"max_epochs": steps, "max_steps": steps, "report_steps": REPORT_STEPS},
            # Beside other work a start may take longer than the time between kills.
            "cluster": {"num_workers": WORKERS, "max_failures": 20},
            "tracking": {"experiment": None},
        }
    )
