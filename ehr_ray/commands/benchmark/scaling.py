"""`benchmark --only scaling`: one worker and two, strong and weak, beside what the model foretells.

Strong: the same work on twice the workers; weak: twice the work on twice the workers. A worker
computes on one thread, and in training keeps to one core with all its other threads, so that one
worker is one core's work and two are two's (measured too where they may run anywhere). Two cores
of a machine are seldom twice one (shared caches, clocks, threads of one core), so the same steps
are taken by two processes that know nothing of each other, and by two ranks of DDP without Ray:
what the first lose is the machine's, what the second lose beyond is DDP's, and the rest is Ray's,
whose own processes need a core too.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ehr_ray.commands.benchmark.cost_model import (
    Cluster,
    ExpandCosts,
    TrainCosts,
    expand_seconds,
    step_seconds,
)
from ehr_ray.commands.expand import ShardExpander
from ehr_ray.commands.ingest import ingest
from ehr_ray.errors import ConfigError
from ehr_ray.events.patients import cohort_shards
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment, parse
from ehr_ray.runtime.data.dataset import codes_table
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.data.tasks import grouped, pool_size, run_jobs, run_shards
from ehr_ray.runtime.training.launch import fit
from ehr_ray.runtime.training.start_log import keep_to_core, read_starts
from ehr_ray.runtime.training.worker import Job, train_here
from ehr_ray.train.backend import LocalBackend, begin_sum, sent_once
from ehr_ray.train.task import family_of

Numbers = dict[str, float]
PATIENTS: Final = 1200
SHARDS: Final = 8
BATCH: Final = 32
STEPS: Final = 24
WARM: Final = 6
"""First steps of a run that are not counted."""
ROUNDS: Final = 2
TIMES: Final = 24
"""Times a task expands its shard, so that its start weighs less, as on shards of use."""
WINDOW: Final = 2880.0
JOBS: Final = 3000
"""Jobs that do nothing, by which the driver's cost is known."""


def scaling(cohort: Path, place: Path) -> Numbers:  # noqa: ARG001
    """Return efficiencies of two workers over one, measured and foretold."""
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise ConfigError("--only scaling: needs 2 CPUs that a process can be kept to (Linux)")
    folder = place / "scaling"
    ingest("synthetic", None, folder, options={"patients": PATIENTS}, splits="0.8,0.1,0.1")
    return expand_scaling(folder, place) | train_scaling(folder, place)


def expand_scaling(cohort: Path, place: Path) -> Numbers:
    """Measure LVCF of shards on Ray Data with one and two tasks at a time."""
    vocabulary = Vocabulary.from_table(codes_table(cohort))
    expander = Pinned(ShardExpander(vocabulary, WINDOW, ()), TIMES)
    shard = cohort_shards(cohort, "train")[0]
    patients = len(set(pq.read_table(shard, columns=["subject_id"])[0].to_pylist()))
    work = [{"shard": str(shard), "target": str(place / f"x{i}.parquet")} for i in range(SHARDS)]

    def seconds(function: Any, count: int, at_once: int) -> float:
        """Return the wall time of `count` shards, `at_once` at a time."""
        each = (os.cpu_count() or 2) / at_once
        started = time.perf_counter()
        run_shards(work[:count], function, on_ray=True, say=_mute, verb="", num_cpus=each)
        return time.perf_counter() - started

    half, whole = SHARDS // 2, SHARDS
    cold = []
    times: dict[tuple[str, int, int], list[float]] = {}
    for _ in range(ROUNDS + 1):
        for key in (("work", half, 1), ("work", whole, 1), ("work", whole, 2), ("none", whole, 2)):
            name, count, at_once = key
            function = expander if name == "work" else Pinned(_nothing)
            if key == ("work", whole, 2):
                # Ray ends a process that idles for a second, so the second one starts here.
                cold.append(seconds(function, count, at_once))
            times.setdefault(key, []).append(seconds(function, count, at_once))
    found = {key: statistics.median(values) for key, values in times.items()}
    bare: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(ROUNDS):
        for count, values in bare.items():
            values.append(statistics.mean(in_processes(_expand_here, [(expander, work)] * count)))
    alone, together = map(statistics.median, bare.values())
    one, two = found[("work", whole, 1)], found[("work", whole, 2)]
    fixed = found[("none", whole, 2)]
    costs = ExpandCosts(alone / whole / patients, 0.0, 0.0, patients)
    model = Cluster(cores=2, parallel=alone / together, node_bytes=1e12, storage_bytes=1e12)
    expected = fixed + expand_seconds(costs, model, 1, whole * patients)["total"]
    return {
        **driver_costs(),
        "expand, 1 task at a time, s": one,
        "expand, 2 tasks at a time, s": two,
        "expand, 2 tasks at a time and a process to start, s": statistics.median(cold),
        "expand, strong efficiency": one / (2 * two),
        "expand, weak efficiency": found[("work", half, 1)] / two,
        "expand, two processes without Ray, efficiency": alone / together,
        "expand, 2 at a time foretold by the model, s": expected,
    }


def driver_costs() -> Numbers:
    """Measure what jobs that do nothing cost the driver: CPU time of this process alone."""
    tasks = len(grouped(JOBS, pool_size(JOBS)[0]))
    started = time.process_time()
    run_jobs(_nothing, [{}] * JOBS, on_ray=True, say=_mute, verb="")
    seconds = time.process_time() - started
    return {
        f"driver, {JOBS:,} jobs, a CPU second": JOBS / seconds,
        f"driver, {JOBS:,} jobs, CPU ms a task of several": 1000 * seconds / tasks,
    }


def train_scaling(cohort: Path, place: Path) -> Numbers:
    """Measure steps of one rank and of two, at one global batch and at twice the batch."""
    small, large = (_experiment(cohort, place, batch) for batch in (BATCH, 2 * BATCH))
    with prepared(small, family_of(small), on_ray=True) as data:
        times: dict[str, list[float]] = {}
        for turn in range(ROUNDS):
            for name, experiment, world, pinned in (
                ("one", small, 1, True),
                ("one, twice the batch", large, 1, True),
                ("two", small, 2, True),
                ("two, twice the batch", large, 2, True),
                ("one, anywhere", small, 1, False),
                ("two, anywhere", small, 2, False),
            ):
                run = place / f"{name}-{turn}"
                times.setdefault(name, []).append(_on_ray(experiment, data, run, world, pinned))
        found = {name: statistics.median(values) for name, values in times.items()}
        bare = [place / name for name in ("alone", "beside0", "beside1", "ranks")]
        in_processes(_train_bare, [(small, data, bare[0], 0)])
        in_processes(_train_bare, [(small, data, run, i) for i, run in enumerate(bare[1:3])])
        store = f"file://{place}/store"
        in_processes(_train_rank, [(small, data, bare[3], rank, store) for rank in (0, 1)])
    alone, *both, ddp = map(_step_of, bare)
    together = statistics.mean(both)
    parameters = _parameters(small, data.vocabulary)
    exchange = _exchange_seconds(parameters)
    sample = (found["one, twice the batch"] - found["one"]) / BATCH
    costs = TrainCosts(sample, max(0.0, found["one"] - BATCH * sample), parameters, spread=0.0)
    parallel = min(1.0, alone / together)
    # A ring of two sends every gradient once, so its measured time is the rate of the wire.
    model = Cluster(parallel=parallel, node_bytes=4 * parameters / exchange, latency=0.0)
    expected = {b: step_seconds(costs, model, 2, b)["total"] for b in (BATCH, 2 * BATCH)}
    return {
        "training, 1 worker, ms per step": 1000 * found["one"],
        "training, 2 workers, ms per step": 1000 * found["two"],
        "training, strong efficiency": found["one"] / (2 * found["two"]),
        "training, strong efficiency, twice the batch": found["one, twice the batch"]
        / (2 * found["two, twice the batch"]),
        "training, weak efficiency": found["one"] / found["two, twice the batch"],
        "training, 1 worker on any core, ms per step": 1000 * found["one, anywhere"],
        "training, 2 workers on any core, ms per step": 1000 * found["two, anywhere"],
        "training, workers on any core, strong efficiency": found["one, anywhere"]
        / (2 * found["two, anywhere"]),
        "training, two processes without Ray, efficiency": alone / together,
        "training, DDP of two processes without Ray, strong efficiency": alone / (2 * ddp),
        "training, parameters": float(parameters),
        "training, gradients summed, ms": 1000 * exchange,
        "training, 2 workers foretold by the model, ms": 1000 * expected[BATCH],
        "training, 2 workers, twice the batch, ms": 1000 * found["two, twice the batch"],
        "training, 2 workers, twice the batch, foretold, ms": 1000 * expected[2 * BATCH],
    }


class Pinned:
    """A function of a shard that uses one thread, in Arrow too, and does its work so many times."""

    def __init__(self, function: Any, times: int = 1) -> None:
        self._function, self._times = function, times

    def __call__(self, job: Mapping[str, Any]) -> Any:
        """Call it."""
        pa.set_cpu_count(1)
        pa.set_io_thread_count(1)
        for _ in range(self._times - 1):
            self._function(job)
        return self._function(job)


def _nothing(job: Mapping[str, Any]) -> None:
    """Do nothing: what is left is the cost of a task."""


def _mute(_: str) -> None:
    pass


def _expand_here(expander: Pinned, work: Sequence[Mapping[str, Any]], barrier: Any) -> float:
    scratch = Path(tempfile.mkdtemp(prefix="ehr_ray-"))
    mine = [{**job, "target": str(scratch / Path(job["target"]).name)} for job in work]
    expander(mine[0])
    barrier.wait()
    started = time.perf_counter()
    for job in mine:
        expander(job)
    return time.perf_counter() - started


def _train_bare(experiment: Experiment, data: Prepared, run: Path, core: int, barrier: Any) -> None:
    keep_to_core(core)
    torch.set_num_threads(1)
    barrier.wait()
    train_here(_job(experiment, data, run), LocalBackend())


class Gloo(LocalBackend):
    """A rank of two processes of this machine, without Ray."""

    def __init__(self, rank: int, store: str) -> None:
        super().__init__()
        self.rank, self.world = rank, 2
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model in DDP."""
        return sent_once(nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True))

    def all_sum(self, values: Tensor) -> Tensor:
        """Return the sum over both."""
        return self.begin_sum(values)()

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin a sum over both; what is returned waits for it, and returns it."""
        return begin_sum(values)


def _train_rank(
    experiment: Experiment, data: Prepared, run: Path, rank: int, store: str, barrier: Any
) -> None:
    keep_to_core(rank)
    torch.set_num_threads(1)
    backend = Gloo(rank, store)
    job = _job(experiment, data, run)
    barrier.wait()
    train_here(job, backend)


def _on_ray(experiment: Experiment, data: Prepared, run: Path, world: int, pinned: bool) -> float:
    """Return the seconds of a step by Ray Train."""
    cluster = replace(experiment.cluster, num_workers=world)
    fit(replace(_job(replace(experiment, cluster=cluster), data, run), pinned=pinned))
    return _step_of(run)


def _step_of(run: Path) -> float:
    ended = next(start.ended for start in read_starts(run / "starts") if start.rank == 0)
    return float(np.mean(np.diff(ended[WARM:])))


def _job(experiment: Experiment, data: Prepared, run: Path) -> Job:
    run.mkdir(parents=True, exist_ok=True)
    return Job(experiment, data, run, run / ".progress.jsonl", None, run / "starts")


def _experiment(cohort: Path, place: Path, batch: int) -> Experiment:
    return parse(
        {
            "family": "set_vae",
            "name": f"scaling-{batch}",
            "output": str(place / "runs"),
            "model": {"sets_per_patient": 16},
            "data": {"cohort": str(cohort.absolute()), "batch_size": batch},
            "train": {"max_epochs": 100, "max_steps": STEPS, "report_steps": STEPS},
            "tracking": {"experiment": None},
        }
    )


def _parameters(experiment: Experiment, vocabulary: Vocabulary) -> int:
    model = family_of(experiment).build(experiment.model, vocabulary)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _exchange_seconds(parameters: int) -> float:
    """Return how long two processes of this machine take to sum so many gradients by gloo."""
    with tempfile.TemporaryDirectory(prefix="ehr_ray-") as folder:
        store = f"file://{folder}/store"
        return statistics.mean(
            in_processes(_exchange, [(rank, store, parameters) for rank in (0, 1)])
        )


def _exchange(rank: int, store: str, parameters: int, barrier: Any) -> float:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    values = torch.zeros(parameters)
    times = []
    barrier.wait()
    for _ in range(20):
        started = time.perf_counter()
        dist.all_reduce(values)
        times.append(time.perf_counter() - started)
    return statistics.median(times[5:])


def in_processes(function: Any, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Call a function in new processes at the same time; each gets a barrier besides.

    They are ended from here, with the groups they are in: the end of a gloo group waits, with
    Python's lock, for threads that may want this lock.
    """
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(len(calls)) as pool:
        barrier = manager.Barrier(len(calls))
        waiting = [pool.apply_async(function, (*call, barrier)) for call in calls]
        return [one.get() for one in waiting]
