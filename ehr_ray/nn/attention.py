"""Scaled dot-product attention, the fast way on each device."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Return [B, H, N, D] of queries [B, H, N, D] over keys and values [B, H, K, D].

    `mask`, broadcast to [B, H, N, K], is True where a key is real; `causal` lets a query see keys
    up to its own position. Give one of the two. In float32 on CPU, where bf16 gradients are 8
    times slower.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), mask, is_causal=causal
        )


@contextlib.contextmanager
def no_plans() -> Iterator[None]:
    """Have a GPU attend by kernels that need no plan, for a while.

    In 16 bits torch asks cuDNN first on an H100 and later. It plans each shape that is new to it,
    tens of milliseconds, and hardly two batches of records are of one shape. Flash attention, which
    comes next, takes any.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
