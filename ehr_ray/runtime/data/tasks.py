"""One list of jobs, one runner: on Ray Data or in this process, with errors brought back."""

import contextlib
import logging
import pickle
import time
import uuid
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ehr_ray.errors import InputError, RunError, UserError, error_of_kind
from ehr_ray.events.brought import is_short
from ehr_ray.events.patients import cohort_shards, splits_of
from ehr_ray.events.schema import SPLITS
from ehr_ray.storage import copies, sync
from ehr_ray.storage.paths import canonical, inside, local, uri_of, written

Say = Callable[[str], None]
log = logging.getLogger(__name__)
RETRIES: Final = 3
"""Times a job is tried again whose process was lost, as one that needs more memory than there is:
Ray Data would try without end."""
MOST_JOBS: Final = 64
"""Jobs of a task at most."""
PATIENCE: Final = 2.0
"""Seconds after which a task tells what it has done of its jobs, and begins no more."""


def run_jobs(
    function: Callable[[Any], Any],
    jobs: Sequence[Any],
    *,
    on_ray: bool,
    say: Say,
    verb: str,
    label: Callable[[Any], str] = str,
    num_cpus: float = 1,
    num_gpus: float = 0,
    actors: tuple[int, int] | None = None,
) -> list[Any]:
    """Call a function on each job, and return its results in the order of the jobs.

    Jobs travel with the function, once: they should name data, not hold it.

    Args:
        function: picklable, and so is what it gives.
        jobs: any picklable values.
        on_ray: as Ray Data tasks, in the session that is open; else in this process. Where there
            are many more jobs than CPUs a task takes several, as long as they are short.
        say: gets a line `verb done/total` after each job.
        verb: what is done, as in `prepared shards`.
        label: the name of a job in the message of an error that nobody foresaw.
        num_cpus: cores of a job.
        num_gpus: GPUs of a job, reserved; without them a process on Ray sees none.
        actors: processes, at first and at most, that keep the function, and what it has loaded,
            from job to job; without them Ray gives each job a copy that has loaded nothing.

    Raises:
        UserError, RunError: as the function raised them, of the same kind.
        RunError: any other error, in one line; its traceback is in the log of the worker.
    """
    results: dict[int, Any] = {}
    guarded = Guarded(function, jobs, label)
    rows = (
        _on_ray(guarded, len(jobs), {"num_cpus": num_cpus, "num_gpus": num_gpus}, actors)
        if on_ray and jobs
        else None
    )
    for count, row in enumerate(rows or map(guarded, range(len(jobs))), start=1):
        if row["kind"]:
            raise error_of_kind(row["kind"], row["error"])
        results[row["index"]] = row["value"]
        say(f"{verb} {count}/{len(jobs)}")
    return [results[index] for index in sorted(results)]


def pool_size(jobs: int, resource: str = "CPU", each: float = 1) -> tuple[int, int]:
    """Return the processes of a pool for so many jobs, at first and at most.

    At first as many as the nodes hold, 0 where none holds one; more may come as a cluster grows.
    """
    return min(jobs, _held(resource, each)), jobs


def _held(resource: str, each: float) -> int:
    """Return how many processes the nodes hold, of which each has its part of a resource on one."""
    import ray

    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return sum(int(have.get(resource, 0) / each) for have in nodes)


@contextlib.contextmanager
def limited_retries() -> Generator[dict[str, int]]:
    """Hand `RETRIES` to Ray Data as it takes them: by an argument of which it warns each time."""
    with warnings.catch_warnings():
        # Removed in Ray 2.64, which is beyond the versions that pyproject.toml allows.
        warnings.filterwarnings("ignore", message="`ray_remote_args(_fn)?` is deprecated")
        yield {"max_retries": RETRIES}


def in_blocks(items: Sequence[Mapping[str, Any]]) -> Any:
    """Return items as rows of Ray Data, each a block of its own: a task takes one."""
    import ray.data

    return ray.data.from_items(list(items), override_num_blocks=len(items))


def grouped(jobs: int, processes: int) -> list[range]:
    """Return so many jobs in groups, a task each: large ones first, single ones at the end.

    A task costs the driver milliseconds, which for many small jobs is more than the jobs take. A
    group is half of an even share of what is left, so that no process is late by a group.
    """
    found, start = [], 0
    while start < jobs:
        size = min(MOST_JOBS, max(1, (jobs - start) // (2 * max(1, processes))))
        found.append(range(start, start + size))
        start += size
    return found


def _on_ray(
    guarded: "Guarded", count: int, each: Mapping[str, float], actors: tuple[int, int] | None
) -> Any:
    """Yield the outcomes of all jobs as they end; the first error ends those not yet begun."""
    import ray.exceptions

    left = dict.fromkeys(range(count))
    # Actors are not restarted by Ray Data, which warns each time that they may be: what is left
    # when one is lost has new ones. Of tasks what is left is long jobs, which go one by one then.
    rounds = 2 if actors is None else 1 + RETRIES
    for number in range(rounds):
        groups: Sequence[Sequence[int]] = [[index] for index in left]
        if actors is None and number == 0:
            held = _held("CPU", max(each["num_cpus"], 1e-9))
            if not held:  # a cluster that grows may still bring one
                log.warning("no node has %g CPUs, as each job wants; waiting", each["num_cpus"])
            groups = grouped(count, held)
        names: list[str] = []
        try:
            for row in _dataset(guarded, groups, each, actors, names).iter_rows():
                for outcome in pickle.loads(row["outcomes"]):
                    del left[outcome["index"]]
                    yield outcome
        except ray.exceptions.RayError as error:
            if actors is None or number == rounds - 1:
                kind = type(error).__name__
                raise RunError(
                    f"a worker process died ({kind}; see -v); run the same command again"
                ) from error
        finally:
            if left:
                _end(names)
        if not left:
            return


def _dataset(
    guarded: "Guarded",
    groups: Sequence[Sequence[int]],
    each: Mapping[str, float],
    actors: tuple[int, int] | None,
    names: list[str],
) -> Any:
    """Return the outcomes of groups of jobs as a dataset that has not begun.

    `names` gets the name of each actor as it starts.
    """
    import ray.data

    def named() -> dict[str, str]:
        names.append(f"pool-{uuid.uuid4().hex}")
        return {"name": names[-1]}

    items = in_blocks([{"jobs": list(group)} for group in groups])
    with limited_retries() as limit:
        if actors is None:
            return items.map(GroupTask(guarded), **limit, **each)
        return items.map(
            GroupTask,
            fn_constructor_args=(guarded,),
            compute=ray.data.ActorPoolStrategy(min_size=max(1, actors[0]), max_size=actors[1]),
            max_restarts=0,
            ray_remote_args_fn=named,
            **each,
        )


def _end(names: Sequence[str]) -> None:
    """End the actors of a pool that failed.

    Ray Data drops its references to them, but its error holds these in its frames: until Python
    collects them, the actors keep CPUs for which what comes next may wait.
    """
    import ray

    for name in names:
        with contextlib.suppress(ValueError):  # it has ended
            ray.kill(ray.get_actor(name))


class Guarded:
    """The call of a job by its index, whose errors are values: Ray would wrap them in tracebacks.

    Jobs are held here since in the rows of a dataset they would have to be of one Arrow type.
    """

    def __init__(
        self, function: Callable[[Any], Any], jobs: Sequence[Any], label: Callable[[Any], str]
    ) -> None:
        self._function, self._jobs, self._label = function, list(jobs), label

    def __call__(self, index: int) -> dict[str, Any]:
        """Return `index`, and `value` or the `kind` and text of an `error`."""
        job = self._jobs[index]
        value, kind, text = None, "", ""
        try:
            value = self._function(job)
        except Exception as error:
            kind, text = problem_of(error, self._label(job))
        return {"index": index, "value": value, "kind": kind, "error": text}


def problem_of(error: Exception, label: str) -> tuple[str, str]:
    """Return the kind and the line of an error; the traceback of one nobody foresaw is logged."""
    if isinstance(error, (UserError, RunError)):
        return type(error).__name__, str(error)
    log.error("failed on %s", label, exc_info=error)
    what = "" if isinstance(error, KeyError) else f": {error}"  # a key may be a patient's
    return RunError.__name__, f"{label}: {type(error).__name__}{what}"


class GroupTask:
    """A row of Ray Data, a group of jobs, in; a row with their outcomes, pickled, out.

    After an error, or `PATIENCE` seconds, no further job of the group is begun.
    """

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded

    def __call__(self, row: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the outcomes of jobs as `Guarded` gives them, of one job at least."""
        begun, outcomes = time.monotonic(), []
        for index in row["jobs"]:
            outcomes.append(self._guarded(int(index)))
            if outcomes[-1]["kind"] or time.monotonic() - begun > PATIENCE:
                break
        return {"outcomes": pickle.dumps(outcomes)}


def run_shards(
    jobs: Sequence[Mapping[str, Any]],
    function: Callable[[Mapping[str, Any]], Any],
    *,
    on_ray: bool,
    say: Say,
    verb: str,
    num_cpus: float = 1,
    num_gpus: float = 0,
    bring: bool = True,
    pool: bool = False,
) -> list[Any]:
    """Run a function over shards by `run_jobs`; return what it gave, in order.

    A job's `shard` and `target` may be copies of URIs: they travel as such, the task reads the
    shard `in_store` and writes the target back, and it is brought here unless `bring` is False.
    With `pool`, where there are more shards than CPUs, or than GPUs where a process has any, it
    keeps the function, and what it has loaded, from shard to shard. Raises InputError where
    processes want GPUs and no node has enough for one.
    """
    processes = _processes(len(jobs), num_gpus) if pool and on_ray else None
    names = {"shard": canonical, "target": written}
    jobs = [{k: names[k](v) if k in names else v for k, v in job.items()} for job in jobs]
    results = run_jobs(
        ShardTask(function, bring=bring),
        jobs,
        on_ray=on_ray,
        say=say,
        verb=verb,
        label=_shard_of,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        # An actor is a process of its own, that starts and imports: for one shard a task is less.
        actors=processes if processes and processes[0] < len(jobs) else None,
    )
    for job in jobs if bring else ():
        sync.fetch(job["target"])
    return results


def _processes(jobs: int, gpus: float) -> tuple[int, int]:
    if not gpus:
        return pool_size(jobs)
    pool = pool_size(jobs, "GPU", gpus)
    if jobs and not pool[0]:
        raise InputError(
            f"--gpus {gpus:g}: no node of the cluster has so many; set 0, or join one that has"
        )
    return pool


def _shard_of(job: Mapping[str, Any]) -> str:
    return str(job["shard"])


def in_store(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the job with its shard as a path, of which a store is read where it lies.

    One of many `files`, a patient each, is copied once in place of a request a file.
    """
    near = sync.fetch if job.get("files") else sync.in_store
    return {**job, "shard": str(near(job["shard"]))}


class ShardTask:
    """Calls a function on a shard, read `in_store`; its target is written here, then pushed.

    A job without a `target` writes nothing. Unless it is to be brought to the driver, the copy of a
    target stays only where the disk has room for more of its size.
    """

    def __init__(self, function: Callable[[Mapping[str, Any]], Any], *, bring: bool = True) -> None:
        self._function, self._bring = function, bring

    def __call__(self, job: Mapping[str, Any]) -> Any:
        """Return what the function gives."""
        here, target = in_store(job), job.get("target", "")
        if target:
            here["target"] = str(local(target))
        with copies.unsent(target):
            value = self._function(here)
            sync.push(target)
        if target and not self._bring and uri_of(target) is not None:
            copy = local(target)
            if is_short(copy.parent, copy.stat().st_size):
                inside(copy).unlink()
        return value


def split_shards(cohort: Path, split: str) -> list[Path]:
    """Return the shards of a split, or raise InputError naming those the cohort has."""
    shards = cohort_shards(cohort, split) if split in SPLITS else []
    if not shards:
        there = ", ".join(splits_of(cohort))
        raise InputError(f"{cohort}: no {split} split; it has {there}")
    return shards
