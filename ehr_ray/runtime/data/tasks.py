"""Jobs of one task a shard, on Ray Data or in this process."""

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from ehr_ray.errors import InputError, RunError, UserError
from ehr_ray.events.patients import cohort_shards, splits_of
from ehr_ray.events.schema import SPLITS
from ehr_ray.storage import sync
from ehr_ray.storage.paths import local, named, uri_of

Say = Callable[[str], None]


log = logging.getLogger(__name__)


def run_shards(
    jobs: Sequence[Mapping[str, Any]],
    function: Callable[[Mapping[str, Any]], Any],
    *,
    on_ray: bool,
    say: Say,
    verb: str,
    num_cpus: float = 1,
    bring: bool = True,
) -> list[Any]:
    """Run a function over shards, as a Ray Data job or here; return what it gave, in order.

    A job's `shard` and `target` may be copies of URIs: they travel as such, the task copies the
    shard to its node and writes the target back, and it is brought here unless `bring` is False.
    Bad input comes back as a value and is raised here, so that a user reads one line and not the
    traceback of a task.
    """
    results: dict[int, Any] = {}
    jobs = [{k: named(v) if k in _PLACES else v for k, v in job.items()} for job in jobs]
    if on_ray:
        import ray.data

        items = [{"index": index, **job} for index, job in enumerate(jobs)]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _Guarded(function), num_cpus=num_cpus
        )
        done = dataset.iter_rows()
    else:
        guarded = _Guarded(function)
        done = (guarded({"index": index, **job}) for index, job in enumerate(jobs))
    for count, row in enumerate(done, start=1):
        if row["error"]:
            raise (InputError if row["input"] else RunError)(row["error"])
        results[row["index"]] = row["value"]
        say(f"{verb} {count}/{len(jobs)}")
    for job in jobs if bring else ():
        sync.fetch(job["target"])
    return [results[index] for index in sorted(results)]


_PLACES = ("shard", "target")


def _here(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a job with the places of this node, where its shard now is."""
    here = dict(job)
    for name, place in job.items():
        if name in _PLACES and uri_of(place) is not None:
            here[name] = str(sync.fetch(place) if name == "shard" else local(place))
    return here


class _Guarded:
    def __init__(self, function: Callable[[Mapping[str, Any]], Any]) -> None:
        self._function = function

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        job = {key: value for key, value in row.items() if key != "index"}
        value, error, bad_input = None, "", False
        try:
            value = self._function(_here(job))
            sync.push(job.get("target", ""))
        except (UserError, RunError) as problem:
            error, bad_input = str(problem), isinstance(problem, UserError)
        except Exception as problem:
            log.exception("failed on %s", job.get("shard"))
            # A key may be a patient's.
            what = "" if isinstance(problem, KeyError) else f": {problem}"
            error = f"{job.get('shard')}: {type(problem).__name__}{what}"
        return {"index": row["index"], "value": value, "error": error, "input": bad_input}


def split_shards(cohort: Path, split: str) -> list[Path]:
    """Return the shards of a split, or raise InputError naming those the cohort has."""
    shards = cohort_shards(cohort, split) if split in SPLITS else []
    if not shards:
        there = ", ".join(splits_of(cohort))
        raise InputError(f"{cohort}: no {split} split; it has {there}")
    return shards


SMALL_BYTES: Final = 200_000_000
"""Smaller inputs are read in this process unless CPUs are asked for: starting Ray takes seconds."""


Task = Callable[[], None]


Run = Callable[[str, Sequence[Task]], None]


@contextlib.contextmanager
def runner(
    units: int,
    size: int,
    cpus: int | None,
    progress: Callable[[str], None],
    address: str | None,
) -> Iterator[Run]:
    """Choose where tasks run: here, unless there is enough work for Ray to pay."""
    if cpus is None:
        here = units == 1 or size < SMALL_BYTES or (os.cpu_count() or 1) == 1
    else:
        here = cpus == 1
    if here:
        yield partial(_run_here, progress)
        return
    from ehr_ray.runtime.session import session

    with session(address, num_cpus=cpus, without="--cpus 1"):
        yield partial(run_on_ray, progress)


def _run_here(progress: Callable[[str], None], verb: str, tasks: Sequence[Task]) -> None:
    for done, task in enumerate(tasks, start=1):
        task()
        progress(f"{verb} {done}/{len(tasks)}")


def run_on_ray(progress: Callable[[str], None], verb: str, tasks: Sequence[Task]) -> None:
    """Run each task as one Ray Data task; the paths travel, never the data."""
    import ray.data
    import ray.exceptions

    items = [{"task": pickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    results = dataset.map_batches(_run_batch, batch_size=1)
    try:
        for done, row in enumerate(results.iter_rows(), start=1):
            if row["bad_input"]:
                raise InputError(row["bad_input"])
            if row["failure"]:
                raise OSError(*filter(None, (row["errno"], row["failure"])))
            progress(f"{verb} {done}/{len(tasks)}")
    except ray.exceptions.RayError as error:
        raise OSError(f"a task died ({type(error).__name__}; see -v)") from error


def _run_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """Run one pickled task; errors come back as text, for Ray would wrap them in tracebacks."""
    bad_input = failure = ""
    number = 0
    try:
        pickle.loads(batch["task"][0])()
    except InputError as error:
        bad_input = str(error)
    except OSError as error:
        failure, number = str(error), error.errno or 0
    return {"bad_input": [bad_input], "failure": [failure], "errno": [number]}
