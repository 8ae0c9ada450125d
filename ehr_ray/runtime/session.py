"""Ray for a laptop or a cluster, quiet, and always shut down.

Ray itself is imported where one is started or asked for: what runs without it does not wait for it.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.errors import ConfigError, RunError

log = logging.getLogger(__name__)

QUIET = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # `report` waits for the controller's next poll: two seconds by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray's workers run at nice 15 otherwise, and starve beside anything else.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
}
OBJECT_STORE_BYTES = 1_000_000_000
"""Store of a Ray started here: rows that are kept are memory-mapped files, so that little goes
through it; of a stream it holds what was made ahead."""


def running() -> bool:
    """Whether this process is joined to a Ray already."""
    ray = sys.modules.get("ray")  # a process that has not imported it has not joined one
    return ray is not None and ray.is_initialized()


@contextlib.contextmanager
def session(
    address: str | None = None,
    num_cpus: int | None = None,
    verbose: bool = False,
    without: str = "",
) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, for the length of a `with` block.

    `address`, else `RAY_ADDRESS` (which `ray job submit` sets), names a running cluster; without
    either Ray starts here, without a dashboard. Its ports listen on every address (Ray replaces a
    loopback one), to those who bring this user's token. Inside another session this one joins it.
    `without` is the option by which the caller's verb does without Ray, if it has one.

    Raises ConfigError where no cluster answers or a container is limited to less than one CPU,
    RunError where Ray twice does not start in time.
    """
    if running():
        yield
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    level = logging.INFO if verbose else logging.ERROR
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"logging_level": level, "log_to_driver": verbose}
    if address == "local":
        options |= {
            "num_cpus": num_cpus,  # None: what Ray counts, by the limit of a container too
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    _connect(address, options, without)
    try:
        if address == "local" and ray.cluster_resources().get("CPU", 0) < 1:
            remedy = f", or do without it ({without})" if without else ""
            raise ConfigError(
                "Ray counts no whole CPU here, by the limit of this container, and would run "
                f"nothing; raise the limit to 1 CPU{remedy}"
            )
        set_up_data(verbose)
        with stopped_like_interrupted():
            yield
    finally:
        ray.shutdown()


def _connect(address: str, options: dict[str, Any], without: str) -> None:
    """Start Ray or join it; raise what a person can do where it does not answer."""
    import ray.exceptions

    try:
        _start(address, options)
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        # Ray drops a caller without the token without a word, as if nothing were there.
        raise ConfigError(
            f"cluster.address={address}: no Ray cluster answers there, or it asks for a token; "
            "start one with `ray start --head`, set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH=FILE, or drop the address to run on this machine"
        ) from error
    except Exception as error:
        if not _late(error):
            raise
        remedy = f"do without it ({without})" if without else "name a running one by RAY_ADDRESS"
        raise RunError(
            "Ray did not start in time, nor at a second try, as this machine is busy; try again "
            f"later, or {remedy}"
        ) from error


def _start(address: str, options: dict[str, Any]) -> None:
    """Start Ray or join it, and try once more where it was late."""
    import ray

    try:
        ray.init(address=address, **options)
    except Exception as error:
        if not _late(error):
            raise
        log.warning("Ray did not start in time on this busy machine; trying once more")
        ray.shutdown()  # what has started of it would be in the way
        ray.init(address=address, **options)


def _late(error: Exception) -> bool:
    return "timed out" in str(error).lower() and not isinstance(error, ConnectionError)


def session_of(cluster: ClusterConfig, verbose: bool = False) -> AbstractContextManager[None]:
    """Return the session of an experiment's cluster: none with `cluster.num_workers=0`."""
    if cluster.most_workers == 0:
        return contextlib.nullcontext()
    return session(cluster.address, verbose=verbose, without="cluster.num_workers=0")


@contextlib.contextmanager
def stopped_like_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C: batch systems, Kubernetes and `ray job stop` end a job by it.

    Ray's own answer is a stack of its native code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def set_up_data(verbose: bool = False) -> None:
    """Set Ray Data up for this process: silent unless `verbose`, tasks bound by cores alone.

    Our jobs hand out shards and get a short row back for each, the data pass by the object store.
    Ray Data shares that store out between operators, and on a small one made tasks wait for each
    other a third of the time on two cores (`benchmark --only scaling`).
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    context.op_resource_reservation_enabled = False
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)


def joined(cluster: ClusterConfig) -> bool:
    """Whether Ray is, or will be, one that runs already, of which only Ray knows the nodes."""
    return (cluster.address or os.environ.get("RAY_ADDRESS") or "local") != "local"


def check_memory(cluster: ClusterConfig) -> None:
    """Refuse rows in this machine's memory on a cluster: its other nodes would not find them."""
    if joined(cluster):
        raise ConfigError(
            "data.cache=memory: rows would be in this machine's memory alone, and workers of a "
            f"cluster ({cluster.address or os.environ['RAY_ADDRESS']}) may run elsewhere; use "
            "data.cache=disk"
        )


def check_resources(cluster: ClusterConfig) -> None:
    """Refuse workers that can never start here, with the arithmetic, and a GPU that is not here.

    On a cluster that was joined the autoscaler may still bring what is missing; there only Ray
    knows, and `cluster.wait_seconds` ends the wait.
    """
    if cluster.most_workers == 0:  # InputError where this process is to train on a GPU it lacks
        from ehr_ray.train.backend import local_device

        local_device(cluster.gpus_per_worker)
        return
    if joined(cluster):
        return
    have: dict[str, float] = {"CPU": os.cpu_count() or 1}
    if joined_here := running():
        import ray

        have = ray.cluster_resources()
    for name, each in (("CPU", cluster.cpus_per_worker), ("GPU", cluster.gpus_per_worker)):
        if name == "GPU" and not joined_here:
            continue
        need, there = each * cluster.least_workers, have.get(name, 0)
        if need > there:
            key = f"cluster.{name.lower()}s_per_worker"
            least, most = cluster.least_workers, cluster.most_workers
            workers = f"{most}" if least == most else f"[{least}, {most}], so {least}"
            raise ConfigError(
                f"cluster.num_workers={workers} x {key}={each:g} needs {need:g} "
                f"{name}s, but this machine has {there:g}; ask for fewer workers or a smaller {key}"
            )


def check_stream(cluster: ClusterConfig) -> None:
    """Refuse a stream on a machine whose workers reserve every CPU: none would make rows.

    Of a range of workers as many start as there is room for.
    """
    if joined(cluster):
        return
    import ray

    have, need = ray.cluster_resources().get("CPU", 0), cluster.cpus_per_worker
    workers = max(cluster.least_workers, min(cluster.most_workers, int(have // need)))
    if need * workers + 1 > have:
        raise ConfigError(
            f"rows are to be streamed, but {workers} workers (cluster.num_workers) x "
            f"cluster.cpus_per_worker={need:g} leave no whole CPU of {have:g} to make them; lower "
            "one of them, or keep rows: data.mode=cache, on a disk with room (data.cache_dir)"
        )
