"""`doctor`: what of this machine a run would use, and what would be in its way."""

import os
import platform
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from ehr_ray.commands.doctor import machine
from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.errors import ConfigError, RunError, UserError
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.tasks import run_jobs
from ehr_ray.runtime.outbox import answers, shown
from ehr_ray.runtime.session import OBJECT_STORE_BYTES, check_resources, session
from ehr_ray.runtime.tracking_store import STORE, tracking_uri
from ehr_ray.storage.paths import staging

GIB: Final = 1 << 30
ENOUGH: Final = 3 * GIB
"""Memory of a small run on Ray: its own processes take two of them."""
DISK: Final = 2 * GIB
SHOWN: Final = ("ray", "torch", "mlflow", "numpy", "pandas", "pyarrow", "scikit-learn", "meds")
PORTS: Final = {6379: "ray start --head --port", 8265: "ray start --head --dashboard-port"}
"""Ports of a Ray that others join, and the option that moves each."""
CREDENTIALS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "S3": (
        ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE"),
        "~/.aws/credentials",
    ),
    "GCS": (
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        "~/.config/gcloud/application_default_credentials.json",
    ),
}
"""Where the credentials of a store are looked for: variables, and a file."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    value: str
    remedy: str = ""
    """What to do about it, where it is in the way of a run; empty where it is not."""
    refused: bool = False
    """Whether a run that is asked for would be refused for it."""

    def __str__(self) -> str:
        """Return the line; a warning ends with the remedy."""
        kind = "refused" if self.refused else "warning"
        return f"{self.name:14} {self.value}" + (
            f"\n  {kind}: {self.remedy}" if self.remedy else ""
        )


def doctor(experiment: Experiment | None = None, *, start_ray: bool = False) -> list[Check]:
    """Look at this machine, and at the experiment to be run on it if there is one.

    Nothing is written, no credentials are read, and Ray is started only with `start_ray`.
    """
    cluster = experiment.cluster if experiment else ClusterConfig()
    return [
        *versions(),
        cpu(cluster),
        cpu_kind(experiment),
        memory(),
        shared_memory(),
        disk(),
        *ports(),
        gpus(cluster),
        tracking(experiment),
        *(credentials(store) for store in CREDENTIALS),
        workers(cluster),
        *([ray_starts()] if start_ray else []),
    ]


def versions() -> Iterator[Check]:
    """Yield the versions, and each installed package that is not one this package works with."""
    told = [f"{name} {metadata.version(name)}" for name in SHOWN]
    own = metadata.version("ehr_ray")
    yield Check("versions", f"ehr_ray {own}, Python {platform.python_version()}, {', '.join(told)}")
    for text in metadata.requires("ehr_ray") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            there = "not installed"
        if not wanted.specifier.contains(there if there[0].isdigit() else "0", prereleases=True):
            yield Check(wanted.name, there, f"needed is {text}; pip install '{text}'")


def cpu(cluster: ClusterConfig) -> Check:
    """Return the CPUs; a quota below them slows every process that counts the others."""
    count, usable = machine.cpus()
    text = f"{usable:g} of {count} for this process"
    if usable < count and not (cluster.address or os.environ.get("RAY_ADDRESS")):
        return Check(
            "CPUs",
            text,
            f"a Ray started here counts all {count}, so more tasks run than there is room for; "
            f"start one yourself by `ray start --head --num-cpus {max(1, int(usable))}` and set "
            "RAY_ADDRESS",
        )
    return Check("CPUs", text)


def cpu_kind(experiment: Experiment | None) -> Check:
    """Return what the processor can do fast."""
    import torch

    flags = machine.cpu_flags()
    used = torch.backends.cpu.get_cpu_capability()
    text = f"{', '.join(flags) or 'no AVX2'} (torch uses {used})"
    asked = experiment is not None and experiment.train.precision == "bf16"
    on_cpu = experiment is not None and not experiment.cluster.gpus_per_worker
    if asked and on_cpu and not any(flag.endswith("bf16") for flag in flags):
        return Check("CPU kind", text, "bf16 is emulated here, and slow; train.precision=float32")
    return Check("CPU kind", text)


def memory() -> Check:
    """Return memory, and the limit of a container, which no other number shows."""
    total, available = machine.memory()
    limit = machine.memory_limit()
    text = f"{_size(available)} available of {_size(total)}"
    text += f", limit of the cgroup {_size(limit)}" if limit is not None else ", no cgroup limit"
    least = min(available, available if limit is None else limit)
    if total and least < ENOUGH:
        return Check(
            "memory",
            text,
            f"a run on Ray takes about {_size(ENOUGH)}; cluster.num_workers=0 takes less",
        )
    return Check("memory", text)


def shared_memory(path: Path = Path("/dev/shm")) -> Check:
    """Return the room of the folder where Ray keeps its store."""
    if not path.is_dir():
        return Check(str(path), "none here: Ray's store is a file")
    free = shutil.disk_usage(path).free
    text = f"{_size(free)} free of {_size(shutil.disk_usage(path).total)}"
    if free < OBJECT_STORE_BYTES:
        need = _size(OBJECT_STORE_BYTES)
        remedy = f"Ray's store takes {need}, and is slow on a disk; docker run --shm-size=2g"
        return Check(str(path), text, remedy)
    return Check(str(path), text)


def disk() -> Check:
    """Return the room where runs are written, and where copies of URIs are."""
    here, copies = Path.cwd(), staging()
    existing = next(path for path in (copies, *copies.parents) if path.exists())
    free = {"here": here, f"for copies of URIs ({copies})": existing}
    text = ", ".join(f"{_size(shutil.disk_usage(p).free)} free {name}" for name, p in free.items())
    closed = [str(path) for path in free.values() if not os.access(path, os.W_OK)]
    if closed:
        return Check("disk", text, f"{closed[0]} is not writable; choose another folder")
    if min(shutil.disk_usage(path).free for path in free.values()) < DISK:
        return Check("disk", text, f"less than {_size(DISK)} free; free space, or run elsewhere")
    return Check("disk", text)


def ports() -> Iterator[Check]:
    """Yield whether the ports of a Ray that others join are free; one started here takes any."""
    taken = [port for port in PORTS if not _is_free(port)]
    free = [str(port) for port in PORTS if port not in taken]
    yield Check("ports", f"{' and '.join(free)} are free" if free else "see below")
    for port in taken:
        remedy = f"a Ray runs there already (RAY_ADDRESS=auto joins it), or {PORTS[port]}=OTHER"
        yield Check(f"port {port}", "in use", remedy)


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def gpus(cluster: ClusterConfig) -> Check:
    """Return the GPUs that torch sees."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_properties(n) for n in range(count)]
    text = ", ".join(f"{p.name} {_size(p.total_memory)}" for p in names) or "none"
    if not count and shutil.which("nvidia-smi"):
        return Check(
            "GPUs",
            text,
            "there is a driver, but this torch is not for it; install torch for its CUDA version",
        )
    if not count and cluster.gpus_per_worker:
        return Check("GPUs", text, f"cluster.gpus_per_worker={cluster.gpus_per_worker:g}: set 0")
    if count and not cluster.gpus_per_worker:
        return Check("GPUs", text, "not used unless cluster.gpus_per_worker=1")
    return Check("GPUs", text)


def tracking(experiment: Experiment | None) -> Check:
    """Return whether the MLflow store answers."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if experiment is not None:
        if experiment.tracking.experiment is None:
            return Check("MLflow", "off (tracking.experiment=null)")
        try:
            uri = tracking_uri(experiment)
        except UserError as error:
            return Check("MLflow", "no store", str(error))
    if uri is None:
        return Check("MLflow", f"{STORE} beside the runs (MLFLOW_TRACKING_URI is not set)")
    if not uri.startswith("http"):
        return Check("MLflow", shown(uri))
    if why := answers(uri):
        remedy = f"does not answer ({why}); start it, or correct MLFLOW_TRACKING_URI"
        return Check("MLflow", shown(uri), remedy)
    return Check("MLflow", f"{shown(uri)} answers")


def credentials(store: str) -> Check:
    """Return whether a store has credentials here; nobody reads them."""
    names, file = CREDENTIALS[store]
    given = [name for name in names if os.environ.get(name)]
    for name in given:
        path = os.environ[name]
        if name.endswith(("_FILE", "_CREDENTIALS")) and not Path(path).is_file():
            return Check(store, f"{name} is set", f"{name}={path}: no such file; correct it")
    if "AWS_ACCESS_KEY_ID" in given and not os.environ.get("AWS_SECRET_ACCESS_KEY"):
        remedy = "AWS_SECRET_ACCESS_KEY is not; set both"
        return Check(store, "AWS_ACCESS_KEY_ID is set", remedy)
    if given:
        return Check(store, f"credentials by {', '.join(given)}")
    if Path(file).expanduser().is_file():
        return Check(store, f"credentials in {file}")
    return Check(store, "no credentials here (a machine in the cloud may have its own)")


def workers(cluster: ClusterConfig) -> Check:
    """Return what a run would use."""
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    threads = max(1, int(cluster.cpus_per_worker))
    least, most = cluster.least_workers, cluster.most_workers
    if most == 0:
        return Check("a run", f"in this process, without Ray, {counted(threads, 'thread')}")
    count = f"{most}" if least == most else f"{least} to {most}"
    where = f"the cluster at {address}" if address else "a Ray started here"
    text = (
        f"{count} {'worker' if most == 1 else 'workers'} on {where}, each "
        f"{counted(cluster.cpus_per_worker, 'CPU')}, {counted(threads, 'thread')}, "
        f"{counted(cluster.gpus_per_worker, 'GPU')} "
        f"({cluster.backend})"
    )
    try:
        check_resources(cluster)
    except ConfigError as error:
        return Check("a run", text, str(error), refused=True)
    need, there = least * cluster.cpus_per_worker, os.cpu_count() or 1
    if (quota := machine.cpu_quota()) is not None:  # as Ray counts in a container
        there = min(there, int(quota))
    if not address and need > there:
        remedy = f"needs {counted(need, 'CPU')} and this machine has {there}; ask for fewer workers"
        return Check("a run", text, remedy)
    return Check("a run", text)


def ray_starts() -> Check:
    """Start Ray, or join it, and run a task on it."""
    began = time.perf_counter()
    try:
        with session():
            run_jobs(str, ["task"], on_ray=True, say=lambda _: None, verb="ran")
    except (UserError, RunError) as error:
        return Check("Ray", "does not start", str(error))
    return Check("Ray", f"started and ran a task in {time.perf_counter() - began:.1f} s")


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: `1 worker`, `2 workers`, `0.5 CPUs`."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
