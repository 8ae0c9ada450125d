"""`benchmark --only size`: what a start takes, and holds, of few and of many tiny patients.

Rows are made first, in this process. Then a process of its own opens them and trains some steps, as
a worker does: what it holds must not grow with patients, nor its first step be later with shards.
"""

import dataclasses
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ehr_ray.commands.benchmark.scaling import in_processes
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import Experiment, parse
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train.allocator import keep_freed_memory, pass_over_imports
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.loop import train
from ehr_ray.train.numerics import numerics
from ehr_ray.train.report import Watch
from ehr_ray.train.task import family_of

Numbers = dict[str, float]
FEW: Final = (10_000, 10)
"""Patients, and shards of train."""
MANY: Final = (1_000_000, 1000)
COARSE: Final = (20_000, 100)
FINE: Final = (20_000, 10_000)
TUNING: Final = 100
EVENTS: Final = 3
"""Of a patient, a minute each."""
STEPS: Final = 20
TURNS: Final = 5
"""Starts on few and on many shards, in turn; a single one varies by a third."""
STATUS: Final = Path("/proc/self/status")


def size_speed(cohort: Path, place: Path) -> Numbers:  # noqa: ARG001
    """Return memory by patients, and seconds to the first step by shards, each with its ratio."""
    if not STATUS.is_file():
        raise ConfigError("--only size: needs a system that tells a process's memory (Linux)")
    (_, memory_few), (many, memory_many) = (_sized(place, *size) for size in (FEW, MANY))
    coarse, fine = (_rows(place, *size)[0] for size in (COARSE, FINE))
    turns = [[_first_step(it, turn)[1:] for it in (coarse, fine)] for turn in range(TURNS)]
    (few_opened, few_first), (many_opened, many_first) = np.median(turns, axis=0).tolist()
    return {
        f"{FEW[0]:,} patients, MB of its own": memory_few,
        f"{MANY[0]:,} patients, MB of its own": memory_many,
        "memory of many over few": memory_many / memory_few,
        f"{MANY[0]:,} patients, CPU ms a patient to make rows": 1000 * many / MANY[0],
        f"{COARSE[1]:,} shards, CPU s to the first step": few_first,
        f"{FINE[1]:,} shards, CPU s to the first step": many_first,
        "first step of many shards over few": many_first / few_first,
        f"{COARSE[1]:,} shards, CPU s without imports": few_opened,
        f"{FINE[1]:,} shards, CPU s without imports": many_opened,
        "first step of many shards over few, without imports": many_opened / few_opened,
    }


def _sized(place: Path, patients: int, shards: int) -> tuple[float, float]:
    """Return CPU seconds to make rows, and MB of a process that starts on them."""
    experiment, seconds = _rows(place, patients, shards)
    return seconds, _first_step(experiment, 0)[0]


def _rows(place: Path, patients: int, shards: int) -> tuple[Experiment, float]:
    """Write a dataset and make its rows; return what opens them, and CPU seconds to make them."""
    folder = place / f"{patients}-{shards}"
    write_tiny(folder / "cohort", patients, shards)
    experiment = _experiment(folder)
    began = time.process_time()
    with prepared(experiment, family_of(experiment), on_ray=False):
        pass
    return experiment, time.process_time() - began


def _first_step(experiment: Experiment, turn: int) -> tuple[float, float, float]:
    """Start a process on rows that are there; return as `_opened` does."""
    run = dataclasses.replace(experiment, name=f"run{turn}")
    return in_processes(_opened, [(run,)])[0]


def write_tiny(cohort: Path, patients: int, shards: int) -> None:
    """Write a dataset of patients with `EVENTS` events each, as many in each shard of train."""
    random, first = np.random.default_rng(0), 0
    codes = pa.array([f"C{i}" for i in range(8)])
    sizes = [("train", s, patients // shards) for s in range(shards)] + [("tuning", 0, TUNING)]
    for split, number, count in sizes:
        rows = EVENTS * count
        times = (np.tile(np.arange(EVENTS), count) * 60 + 1_500_000_000) * 1_000_000
        table = {
            "subject_id": np.repeat(np.arange(first, first + count), EVENTS),
            "time": pa.array(times, pa.timestamp("us")),
            "code": codes.take(pa.array(random.integers(0, len(codes), rows))),
            "numeric_value": random.normal(size=rows).astype(np.float32),
        }
        path = cohort / "data" / split / f"{number}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path)
        first += count
    (cohort / "metadata").mkdir()


class Memory(threading.Thread):
    """The most memory of its own that this process has had since `start`, in MB: no mapped file."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._over = 0.0, threading.Event()

    def run(self) -> None:
        """Look again and again."""
        while not self._over.wait(0.01):
            lines = STATUS.read_text().splitlines()
            own = next(line for line in lines if line.startswith("RssAnon"))
            self.most = max(self.most, int(own.split()[1]) / 1024)

    def stop(self) -> float:
        """End, and return it."""
        self._over.set()
        self.join()
        return self.most


def _opened(experiment: Experiment, barrier: Any) -> tuple[float, float, float]:
    """Open rows that are there and train.

    Returns MB, and CPU seconds to the first step: from here on, and from the process's start.
    """
    torch.set_num_threads(1)
    keep_freed_memory()
    pass_over_imports()
    memory, family = Memory(), family_of(experiment)
    memory.start()
    barrier.wait()
    began, ended = time.process_time(), []
    watch = Watch(lambda *_: ended.append(time.process_time()), lambda _: None, lambda _: None)
    with (
        prepared(experiment, family, on_ray=False) as data,
        numerics(experiment.train),
    ):
        loader = loader_of(experiment, family, data)
        backend, run = LocalBackend(), experiment.directory
        train(experiment, family, data.vocabulary, loader, backend, run, watch)
    return memory.stop(), ended[0] - began, ended[0]


def _experiment(folder: Path) -> Experiment:
    return parse(
        {
            "family": "set_vae",
            "name": "run",
            "output": str(folder / "runs"),
            "model": {"sets_per_patient": 4, "width": 32, "reduced": 16, "latent": 8},
            "data": {"cohort": str(folder / "cohort"), "batch_size": 32, "mode": "cache"},
            "train": {"max_epochs": 1, "max_steps": STEPS, "report_steps": STEPS},
            "cluster": {"num_workers": 0},
            "tracking": {"experiment": None},
        }
    )
