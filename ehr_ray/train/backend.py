"""Where a run happens, as the loop sees it."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.errors import InputError, RunError, UserError, error_of_kind

LINE: Final = 4096
"""Bytes of an error that ranks tell each other."""


class Backend(Protocol):
    """A rank among others. The loop knows nothing else about the machine."""

    device: torch.device
    rank: int
    world: int

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model ready for training: on the device, gradients synchronised."""

    def all_sum(self, values: Tensor) -> Tensor:
        """Return the sum over ranks."""

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin a sum over ranks; what is returned waits for it, and returns it."""

    def report(self, metrics: dict[str, float]) -> None:
        """Tell the outside about a report; every rank calls it equally often."""


def local_device(gpus: float, option: str = "cluster.gpus_per_worker=") -> str:
    """Return the device of a model in this process; InputError without the GPU `option` wants."""
    if not gpus:
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError(
            f"{option}{gpus:g}: torch finds no GPU on this machine; set it to 0, "
            "or install a torch that is built for its driver"
        )
    return "cuda"


class LocalBackend:
    """One process, no Ray: tests, notebooks, `cluster.num_workers=0`."""

    rank = 0
    world = 1

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model on the device."""
        return model.to(self.device)

    def all_sum(self, values: Tensor) -> Tensor:
        """Return the values: there is one rank."""
        return values

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Return what returns the values: there is nobody to wait for."""
        return lambda: self.all_sum(values)

    def report(self, metrics: dict[str, float]) -> None:
        """Do nothing: the run directory has it all."""


def begin_sum(values: Tensor) -> Callable[[], Tensor]:
    """Begin to sum values, in place, over the process group; what is returned waits for the sum.

    With nccl the GPU waits, and the host does not.
    """
    work = dist.all_reduce(values, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return values

    return wait


def sent_once(wrapped: nn.Module) -> nn.Module:
    """Return a wrapped model whose buffers DDP sends from rank 0 when it wraps, and never again.

    Before each forward it would send tables of embeddings as large as the model. A family changes a
    buffer during training only by what is equal on all ranks.
    """
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.broadcast_buffers = False  # given at its making it would also send nothing at first
    return wrapped


@contextlib.contextmanager
def together(backend: Backend) -> Iterator[None]:
    """End every rank where one cannot go on: the others would wait for it at the next sum.

    All ranks enter the block. They raise the error of the first one at fault, `UserError` or
    `RunError`, by its own line.
    """
    problem: UserError | RunError | None = None
    try:
        yield
    except (UserError, RunError) as error:
        problem = error
    faults = torch.zeros(backend.world)
    faults[backend.rank] = float(problem is not None)
    at_fault = backend.all_sum(faults).nonzero()
    if not len(at_fault):
        return
    first = int(at_fault[0]) == backend.rank
    line = torch.zeros(LINE)
    if first:
        written = f"{type(problem).__name__}\n{problem}".encode(errors="replace")[:LINE]
        line[: len(written)] = torch.tensor([*written], dtype=torch.float32)
    kind, _, text = (
        bytes(backend.all_sum(line).int().tolist()).decode(errors="ignore").partition("\n")
    )
    raise problem if first and problem is not None else error_of_kind(kind, text.rstrip("\0"))
