"""The `cluster` section: where a run happens, with how many workers, or what range of them."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator


def parse_workers(value: Any) -> int | tuple[int, int]:
    """Return a number of workers, or the least and the most; ValueError for anything else."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    pair = value if isinstance(value, (list, tuple)) else (value, value)
    if len(pair) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) for n in pair):
        raise ValueError("must be a whole number, as in 4, or [least, most], as in [1, 4]")
    least, most = pair
    if least < 0:
        raise ValueError("must not be negative")
    if pair is not value:
        return least
    if least == 0:
        raise ValueError("a range starts at 1; 0 alone trains without Ray")
    if most < least:
        raise ValueError("the first number of [least, most] is above the second")
    return least, most


Workers = Annotated[int | tuple[int, int], PlainValidator(parse_workers)]
"""Type of a config's field."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the run happens."""

    __pydantic_config__ = {"extra": "forbid"}

    num_workers: Workers = 1
    """Ray Train workers (ranks); 0 trains in this process, without Ray; [least, most]: as many
    of them as the cluster has room for, more or fewer when that changes."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several workers hold a model: ddp, each of them all of it; fsdp (FSDP2), each its part of
    weights, gradients and moments, for less memory and more exchange. Results are the same up to
    rounding, and a run goes on under either."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPUs each worker reserves, and the torch threads it uses."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs each worker reserves. Several workers with a share of one, as 0.5, may sit on the same
    GPU and sum by gloo, through the host; with whole ones they sum by nccl."""
    address: str | None = None
    """Ray cluster to join; None joins `RAY_ADDRESS` if set, else starts Ray on this machine."""
    timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1800
    """How long a rank waits for the others in a sum over ranks, before the run counts as lost."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Losses of workers in a row, no state saved between them, that a run survives: each restarts
    it from the last saved state. Losses after which it went on do not count."""
    wait_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600
    """Time that room for a fixed number of workers is waited for, at the start and after a loss."""
    resize_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 60
    """Time between looks for room for more workers, where `num_workers` is a range."""

    @property
    def least_workers(self) -> int:
        """Workers without which nothing is trained."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        """Workers there may be at most; 0 trains in this process, without Ray."""
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def backend(self) -> Literal["nccl", "gloo"]:
        """What sums over workers: nccl on GPUs, but not where two ranks may share one."""
        shared = self.gpus_per_worker < 1 and self.most_workers > 1
        return "gloo" if shared or not self.gpus_per_worker else "nccl"
