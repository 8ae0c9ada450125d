"""How torch multiplies and adds while it trains or predicts, and as it was after it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils import deterministic

from ehr_ray.config.sections import TrainConfig
from ehr_ray.errors import UnrepeatableError
from ehr_ray.nn.attention import no_plans

REFUSED = "does not have a deterministic implementation"
"""Of torch's message about a kernel."""
BY_CUBLAS = "not deterministic because it uses CuBLAS"
"""Of its message about products, where cuBLAS was given another workspace than it needs."""


def repeatable_products() -> None:
    """Have cuBLAS keep memory for each stream of its own, so that its products repeat.

    Torch asks for it at the first product of a process, whatever is set later.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Multiply and convolve float32 as `train.matmul_precision` says, for a while.

    By itself a GPU convolves in TF32 whatever products are to have. Attention makes no plans.
    """
    before, convolved = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = precision != "highest"
    try:
        with no_plans():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = convolved


@contextmanager
def numerics(plan: TrainConfig) -> Iterator[None]:
    """Set what `train.matmul_precision` and `train.deterministic` say, for a while.

    Raises UnrepeatableError with the name of a kernel that cannot be deterministic.
    """
    refused = torch.are_deterministic_algorithms_enabled()
    memory: Any = deterministic  # torch makes its attribute when it is imported
    fill = bool(memory.fill_uninitialized_memory)
    if plan.deterministic:
        repeatable_products()
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # nothing here reads what it has not written
    try:
        with products(plan.matmul_precision):
            yield
    except RuntimeError as error:
        if plan.deterministic and BY_CUBLAS in str(error):
            raise UnrepeatableError(
                f"train.deterministic=true: cuBLAS repeats no product with CUBLAS_WORKSPACE_CONFIG="
                f"{os.environ.get('CUBLAS_WORKSPACE_CONFIG')}; unset it, or set it to :4096:8"
            ) from error
        if not plan.deterministic or REFUSED not in str(error):
            raise
        kernel = str(error).split(maxsplit=1)[0]
        raise UnrepeatableError(
            f"train.deterministic=true: {kernel} adds in another order each time on this device; "
            "set it to false, or train on the CPU"
        ) from error
    finally:
        torch.use_deterministic_algorithms(refused)
        memory.fill_uninitialized_memory = fill
