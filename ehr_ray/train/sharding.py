"""Weights, gradients and moments divided among ranks (FSDP2), whole where a report needs them.

Each rank keeps a part of every tensor, by its first axis. A transformer block is gathered while it
computes and let go after it; what is not in a block is gathered for a whole step. Gradients are
averaged as DDP averages them, so a model is trained alike by either, up to rounding.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ehr_ray.errors import ConfigError
from ehr_ray.nn.transformer import Block

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

TWIN: Final = "whole_twin"
"""Attribute of a sharded model: a tuple, so that the twin is no part of the model."""


def sharded(module: nn.Module, device: torch.device) -> nn.Module:
    """Divide a model on the CPU or `device` among the ranks of the process group; return it.

    It begins with the weights and buffers of rank 0, and is to be trained by `module(...)` alone,
    as often on each rank. Raises ConfigError for a parameter that is a single number.
    """
    # Importing these takes a second, which a run of whole models is spared.
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    for name, parameter in module.named_parameters():
        if not parameter.ndim:
            raise ConfigError(
                f"cluster.strategy=fsdp: {name} is a single number, which cannot be divided; "
                "set it to ddp"
            )
    _begin_alike(module, device)
    twin = _hollow(module)
    # Of the group there is: beside a GPU torch would make another one of a gloo group, by nccl.
    group = dist.group.WORLD
    assert group is not None, "no process group was begun"
    mesh = DeviceMesh.from_group(group, device.type)
    # Blocks alone: every rank calls each of them equally often, which is not so of what reads sets
    # in chunks, and ranks that gather other parts would wait for each other without end.
    for part in [part for part in module.modules() if isinstance(part, Block)]:
        fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)
    # It warns of outputs that are views: a family's loss changes none in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    setattr(module, TWIN, (twin,))
    return module


def plain(wrapped: nn.Module) -> nn.Module:
    """Return the model that a backend has wrapped; of a sharded one what `whole` fills."""
    twin: tuple[nn.Module] | None = getattr(wrapped, TWIN, None)
    own: nn.Module = getattr(wrapped, "module", wrapped)
    return own if twin is None else twin[0]


@contextlib.contextmanager
def whole(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a model with all its weights, to be measured and saved, not trained.

    Of a sharded one it is a twin, for which all ranks enter together; inside it each may compute
    as often as it likes. Any other model is itself.
    """
    twin = plain(module)
    if twin is module:
        yield module
        return
    for name, part in module.named_modules():
        other = twin.get_submodule(name)
        other._buffers.update(part._buffers)
        for key, parameter in part.named_parameters(recurse=False):
            setattr(other, key, nn.Parameter(full(parameter.detach()), requires_grad=False))
    try:
        yield twin
    finally:
        for part in twin.modules():
            for key, parameter in [*part.named_parameters(recurse=False)]:
                setattr(part, key, _nothing(parameter))


def is_part(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a rank's part of one that is divided."""
    return hasattr(tensor, "full_tensor")  # of torch's DTensor, without its import


def own(tensor: Tensor) -> Tensor:
    """Return this rank's part of a divided tensor, as a view of it; any other itself."""
    part: Tensor = tensor.to_local() if is_part(tensor) else tensor
    return part


def full(tensor: Tensor) -> Tensor:
    """Return the whole of a divided tensor, which all ranks ask for together; any other itself."""
    if not is_part(tensor):
        return tensor
    # Not by `full_tensor`: with gloo (torch 2.13) it writes where memory is freed, once in some
    # ten thousand calls.
    part, world = own(tensor), dist.get_world_size()
    rows = -(-len(tensor) // world)
    sent = part.new_zeros(rows, *part.shape[1:])
    sent[: len(part)] = part
    found = part.new_empty(world, *sent.shape)
    dist.all_gather([*found], sent)
    return found.flatten(0, 1)[: len(tensor)]


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Return tensors, whole, on the CPU; {} where a rank does not `keep` them.

    Divided ones are asked for by all ranks together, one after the other.
    """
    found = {}
    for name, tensor in tensors.items():
        entire = full(tensor)
        if keep:
            found[name] = entire.detach().cpu()
    return found


def divided_as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor where `like`, of its shape, is divided.

    Else, or of another shape, the tensor. Every rank has the whole, so nothing is sent.
    """
    if not is_part(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    part = distribute_tensor(
        tensor.to(like.device),
        like.device_mesh,
        like.placements,
        src_data_rank=None,
    )
    return part.clone()  # a part alone, not a view that keeps the whole


@torch.no_grad()
def _begin_alike(module: nn.Module, device: torch.device) -> None:
    """Send weights and buffers of rank 0 to the others, as DDP does."""
    for tensor in [*module.parameters(), *module.buffers()]:
        sent = tensor.detach().to(device).contiguous()
        dist.broadcast(sent, 0)
        tensor.copy_(sent)


def _hollow(module: nn.Module) -> nn.Module:
    """Return a copy of a model that shares its buffers and has no memory for its parameters."""
    known = {id(parameter): _nothing(parameter) for parameter in module.parameters()}
    return copy.deepcopy(module, {**known, **{id(buffer): buffer for buffer in module.buffers()}})


def _nothing(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
