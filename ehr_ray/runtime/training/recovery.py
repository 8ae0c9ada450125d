"""What a run survives: lost workers, while it reports between losses, and waits for resources."""

import math
import os
from collections.abc import Mapping
from typing import Any

from ray.train import FailureConfig, UserCallback

from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.errors import (
    DamagedRowsError,
    ResourcesUnavailableError,
    RowsUnavailableError,
    RunError,
    StoreUnavailableError,
    UserError,
)
from ehr_ray.runtime.training.sending import saved_step
from ehr_ray.storage.paths import local

START_SECONDS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Ray's own limit of one wait for resources, after which it asks again; 60 seconds unless set."""
WAITED = ("ms for recv operation", "ms for send operation", "collective operation timeout")
"""What gloo, and nccl, say where a rank has waited for as long as it may."""


class Patience(UserCallback):
    """Counts losses of workers in a row; a state that was saved between them starts anew.

    Ray counts the losses of a whole run, so a long one on machines that come and go would fail
    however well it went on. A report alone is no progress: it may be lost on its way to the store.
    """

    def __init__(self, cluster: ClusterConfig, run: str, step: int = 0) -> None:
        """`run` is its URI, or a path that all nodes share; `step` that of its last state now."""
        self._cluster, self._most = cluster, cluster.max_failures
        self._name = local(run).name
        self._run, self._step, self._lost = run, step, 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Count a loss; RunError, which ends the run, at one too many.

        What a worker says is wrong ends it at once, by the worker's own error.
        """
        if (said := said_by(worker_exceptions)) is not None:
            raise said
        if (step := saved_step(self._run)) > self._step:
            self._lost, self._step = 0, step
        self._lost += 1
        if self._lost > self._most:
            kind = StoreUnavailableError if lacks_rows(worker_exceptions) else RunError
            text = _worker(worker_exceptions, self._cluster)
            raise kind(f"{self._name}: {text}{too_many(self._lost, self._most)}")


def too_many(lost: int, most: int) -> str:
    """Return why a run is given up after its losses; nothing where one is enough."""
    if most == 0:
        return ""
    return (
        f"; lost {lost} times without a saved state between (cluster.max_failures={most}): shorten "
        "train.report_steps if losses are that frequent"
    )


def failure_config(cluster: ClusterConfig) -> FailureConfig:
    """Return Ray's: `Patience` counts the losses, and waits for resources end at `wait_seconds`."""
    each = float(os.environ.get(START_SECONDS, 60))
    # -1: no limit of Ray's own. A wait that has run out counts as a failure of its controller.
    return FailureConfig(
        max_failures=-1, controller_failure_limit=max(0, math.ceil(cluster.wait_seconds / each) - 1)
    )


def lacks_resources(error: Exception) -> bool:
    """Whether a run ended because the cluster never had the resources of its workers."""
    return "Timeout" in type(getattr(error, "controller_failure", error)).__name__


def said_by(failures: Mapping[int, Exception]) -> UserError | RunError | None:
    """Return what a worker says is wrong, which trying again does not mend; None for a loss.

    Rows are read again: the next worker may find them as they should be.
    """
    again = (DamagedRowsError, RowsUnavailableError)
    for _, failure in sorted(failures.items()):
        if isinstance(failure, (UserError, RunError)) and not isinstance(failure, again):
            return failure
    return None


def lacks_rows(failures: Mapping[int, Exception]) -> bool:
    """Whether a worker was lost since a store gave it no rows."""
    return any(RowsUnavailableError.__name__ in f"{type(f)} {f}" for f in failures.values())


def failure_of(error: Any, cluster: ClusterConfig, name: str) -> UserError | RunError:
    """Return the error, in one line, as which a training of a name that Ray gave up has failed.

    What a worker says is wrong is told in its own words, however many workers there were.
    """
    inner = getattr(error, "controller_failure", None)
    if isinstance(inner, (UserError, RunError)):
        return inner
    failures = getattr(error, "worker_failures", None) or {}
    kind = StoreUnavailableError if lacks_rows(failures) else RunError
    if lacks_resources(error):
        kind = ResourcesUnavailableError
    return kind(f"{name}: {_cause(error, failures, cluster)}")


def _cause(error: Any, failures: Mapping[int, Exception], cluster: ClusterConfig) -> str:
    """Return in one line why training failed."""
    if lacks_resources(error):
        resources = f"{cluster.cpus_per_worker:g} CPUs"
        if cluster.gpus_per_worker:
            resources += f" and {cluster.gpus_per_worker:g} GPUs"
        return (
            f"the cluster had no resources for {cluster.least_workers} workers of {resources} each "
            f"within cluster.wait_seconds={cluster.wait_seconds:g}; see `ray status`, ask for "
            "less, or run the same command later: it goes on from the last saved state"
        )
    if failures:
        return _worker(failures, cluster)
    return last_line(getattr(error, "controller_failure", None) or error)


def _worker(failures: Mapping[int, Exception], cluster: ClusterConfig) -> str:
    for rank, failure in failures.items():
        if any(text in str(failure) for text in WAITED):  # the others lost their connection to it
            return (
                f"worker {rank} waited for the others in a sum longer than "
                f"cluster.timeout_seconds={cluster.timeout_seconds:g}: one of them hangs, or is "
                "that much slower; look at its log (-v), or raise cluster.timeout_seconds"
            )
    rank, failure = next(iter(failures.items()))
    return f"worker {rank} failed: {last_line(failure)}"


def last_line(error: BaseException) -> str:
    """Return the last line of an error's text, which in Ray's says what happened."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
