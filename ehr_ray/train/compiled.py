"""Transformer blocks as the kernels that torch.compile fuses, one for each shape.

`nn.transformer.through` rounds lengths up, so that there are few shapes, and each is compiled for
itself, never for shapes in general: what a batch gives then depends on the batch alone and not on
those before it, so that a killed run goes on bit for bit. Blocks are compiled where they are
trained; validation, and all that reads a checkpoint, computes as ever.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import torch
from torch import nn

from ehr_ray.errors import ConfigError, RunError
from ehr_ray.nn.transformer import Block

Mode = Literal["default", "reduce-overhead"]
BACKEND = "inductor"
MOST_SHAPES: Final = 256
"""Shapes, of lengths and batches together, that blocks are compiled for at most."""


def compile_blocks(module: nn.Module, mode: Mode, family: str, device: torch.device) -> None:
    """Have every transformer block of a model compiled when it is first trained on a shape.

    Raises ConfigError for a model without blocks, for what a device has not, and where torch finds
    no compiler.
    """
    option = f"train.compile={mode}"
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    if not blocks:
        raise ConfigError(
            f"{option}: this {family} has no transformer blocks, which alone are compiled; set it "
            "to none"
        )
    if mode == "reduce-overhead" and device.type != "cuda":
        raise ConfigError(f"{option} records graphs of a GPU; on the {device.type} give default")
    _check(option, device)
    # Above its limit, of eight, torch refuses what is new.
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, MOST_SHAPES)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4 * MOST_SHAPES)
    step = _limited(_compile(Block.computed, mode), option)
    for block in blocks:
        block.compiled = step


@contextlib.contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Have the blocks of a model computed as they are written for a while."""
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    before = [block.compiled for block in blocks]
    for block in blocks:
        block.compiled = None
    try:
        yield
    finally:
        for block, step in zip(blocks, before, strict=True):
            block.compiled = step


def _compile(function: Callable[..., Any], mode: Mode) -> Callable[..., Any]:
    """Return a function compiled for each shape, whole: a break in its graph is an error."""
    return torch.compile(function, backend=BACKEND, mode=mode, dynamic=False, fullgraph=True)


def _limited(function: Callable[..., Any], option: str) -> Callable[..., Any]:
    """Return a compiled function that says in one line where there are more shapes than its limit.

    It raises RunError.
    """
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def compute(*given: Any) -> Any:
        try:
            return function(*given)
        except FailOnRecompileLimitHit as error:
            raise RunError(
                f"{option}: blocks met more than {MOST_SHAPES} shapes, of lengths and batches "
                "together, and each is compiled for itself; set it to none"
            ) from error

    return compute


def _check(option: str, device: torch.device) -> None:
    """Raise ConfigError where torch cannot compile for a device."""
    try:
        _compile(torch.sin, "default")(torch.zeros(2, device=device))
    except Exception as error:  # of torch, of Triton, of the system: whatever is missing
        cause = getattr(error, "inner_exception", error)  # torch's own says what raised it alone
        why = f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"
        needs = "a C++ compiler, such as g++," if device.type == "cpu" else "Triton and gcc"
        raise ConfigError(
            f"{option}: torch cannot compile here ({why}); install {needs} or set it to none"
        ) from error
