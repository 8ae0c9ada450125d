"""How long `expand` and training take on any number of nodes, from a handful of measured costs.

Arithmetic, not a simulation of Ray: each resource is busy for so long, the busiest decides, and its
name is what saturates first. `benchmark --only scaling` measures the costs on one machine and holds
the model against the times of two workers there.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ehr_ray.runtime.data.tasks import grouped


@dataclass(frozen=True)
class Cluster:
    """What nodes are made of; by default 16 cores, 10 Gbit/s and 64 GiB. Put in your own."""

    cores: int = 16
    """Cores of a node."""
    node_bytes: float = 10e9 / 8
    """Bytes a second through a node's network, to storage or to other nodes."""
    storage_bytes: float = 100e9
    """Bytes a second the storage gives all nodes together."""
    latency: float = 50e-6
    """Seconds a message takes between two nodes."""
    driver_task: float = 0.0055
    """CPU seconds a task costs the driver, which hands out one after the other."""
    driver_job: float = 0.00002
    """CPU seconds a job of it costs the driver besides."""
    parallel: float = 1.0
    """Speed of a core while all others work, over its speed alone: below 1 where cores share."""


@dataclass(frozen=True)
class ExpandCosts:
    """What `expand` costs."""

    patient_seconds: float
    """CPU seconds a patient."""
    task_seconds: float
    """Seconds a shard costs beyond its patients: a task's start and end."""
    patient_bytes: float
    """Bytes read and written a patient."""
    shard_patients: int = 1000
    """Patients of a shard, the unit of work."""
    driver_bytes: float = 500.0
    """Bytes the driver holds a shard: its path, its task and what the task returned."""


@dataclass(frozen=True)
class TrainCosts:
    """What training costs."""

    sample_seconds: float
    """Seconds a patient takes one rank, forward and backward."""
    step_seconds: float
    """Seconds a step costs whatever its batch: optimizer, clipping, launch."""
    parameters: int
    """Trained parameters; a gradient has 4 bytes of each."""
    spread: float = 0.05
    """Standard deviation of a rank's step over its mean: the slowest of all ranks decides."""
    sample_bytes: float = 4000.0
    """Bytes of a model-ready patient."""


def expand_seconds(
    costs: ExpandCosts, cluster: Cluster, nodes: int, patients: int
) -> dict[str, float]:
    """Return how long each resource is busy, by name, and their maximum as `total`."""
    shards = math.ceil(patients / costs.shard_patients)
    rate = cluster.parallel if cluster.cores * nodes > 1 else 1.0
    one = costs.shard_patients * costs.patient_seconds / rate + costs.task_seconds
    rounds = math.ceil(shards / (cluster.cores * nodes))
    tasks = len(grouped(shards, cluster.cores * nodes))
    traffic = patients * costs.patient_bytes
    parts = {
        "cores": rounds * one,
        "network of a node": traffic / nodes / cluster.node_bytes,
        "storage": traffic / cluster.storage_bytes,
        "driver": tasks * cluster.driver_task + shards * cluster.driver_job,
    }
    return {**parts, "total": max(parts.values())}


def step_seconds(
    costs: TrainCosts, cluster: Cluster, ranks: int, batch: int, ranks_per_node: int = 1
) -> dict[str, float]:
    """Return a step's parts in seconds: `compute`, `stragglers`, `gradients` and their `total`.

    Gradients are summed around a ring (Patarasuk and Yuan 2009): each rank sends 2 (W - 1) / W of
    them in 2 (W - 1) messages. The slowest of W ranks is sqrt(2 ln W) standard deviations late.
    """
    rate = cluster.parallel if ranks > 1 else 1.0
    compute = (math.ceil(batch / ranks) * costs.sample_seconds + costs.step_seconds) / rate
    late = compute * costs.spread * math.sqrt(2 * math.log(ranks)) if ranks > 1 else 0.0
    share = 2 * (ranks - 1) / ranks
    wire = cluster.node_bytes / ranks_per_node
    gradients = share * 4 * costs.parameters / wire + 2 * (ranks - 1) * cluster.latency
    parts = {"compute": compute, "stragglers": late, "gradients": gradients if ranks > 1 else 0.0}
    return {**parts, "total": sum(parts.values())}


def epoch_seconds(
    costs: TrainCosts,
    cluster: Cluster,
    nodes: int,
    patients: int,
    *,
    batch_per_rank: int | None = None,
    batch: int | None = None,
) -> dict[str, float]:
    """Return an epoch's seconds by part with one rank a node, and the efficiency over one node.

    Give either `batch`, the same whatever the nodes (strong scaling), or `batch_per_rank` (weak).
    """
    whole = batch or (batch_per_rank or 1) * nodes
    steps = math.ceil(patients / whole)
    parts = {k: v * steps for k, v in step_seconds(costs, cluster, nodes, whole).items()}
    alone = math.ceil(patients / (batch or batch_per_rank or 1))
    one = step_seconds(costs, cluster, 1, batch or batch_per_rank or 1)["total"] * alone
    reading = patients * costs.sample_bytes / nodes / cluster.node_bytes
    total = max(parts["total"], reading)
    return {**parts, "reading": reading, "total": total} | {"efficiency": one / (nodes * total)}


def first_to_saturate(parts: Mapping[str, float]) -> str:
    """Return the name of the part that takes longest, besides `total`."""
    named = {k: v for k, v in parts.items() if k not in ("total", "efficiency")}
    return max(named, key=lambda name: named[name])


def table(
    expand: ExpandCosts, train: TrainCosts, cluster: Cluster, patients: int, batch_per_rank: int
) -> list[str]:
    """Return a Markdown table over 1 to 1,000 nodes: times, efficiency, what saturates first."""
    lines = [
        "| nodes | expand | decided by | an epoch | efficiency | longest part beside compute |",
        "|---|---|---|---|---|---|",
    ]
    for nodes in (1, 2, 10, 100, 1000):
        first = expand_seconds(expand, cluster, nodes, patients)
        epoch = epoch_seconds(train, cluster, nodes, patients, batch_per_rank=batch_per_rank)
        beside = {k: v for k, v in epoch.items() if k not in ("compute",)}
        lines.append(
            f"| {nodes:,} | {_time(first['total'])} | {first_to_saturate(first)} | "
            f"{_time(epoch['total'])} | {epoch['efficiency']:.2f} | {first_to_saturate(beside)} |"
        )
    return lines


def _time(seconds: float) -> str:
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
