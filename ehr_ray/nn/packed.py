"""Sequences of unlike length one after the other, where a GPU has a kernel for them.

Blocks are run on packed tokens as a whole, not attention alone: most of their work is the products
of each token with weights, of which padding takes its share too.

B sequences of T places, N real tokens among B * T, H heads of width W, D width.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Callable[..., Tensor]
"""`torch.nn.attention.varlen.varlen_attn`, or what computes the same."""
WIDEST, STEP = 256, 8
"""Width of a head that flash attention takes at most, and what divides it."""
FLASH = (8, 0)
"""The least capability of a GPU with such a kernel: the A100's."""
_SPARED: list[list[int]] = []
"""One list for each `padded` that holds."""


@dataclass(frozen=True)
class Packed:
    """Where the real tokens of [B, T] stand among the packed, [N]."""

    index: Tensor
    """Their places in B * T, ascending, int64 [N]."""
    starts: Tensor
    """Where each sequence starts among them, and N, int32 [B + 1]."""
    size: tuple[int, int]
    """(B, T); no sequence is longer than T."""
    kernel: Kernel

    def pack(self, hidden: Tensor) -> Tensor:
        """Return the real tokens of [B, T, D], [N, 1, D]: as N sequences of one."""
        return hidden.flatten(0, 1).index_select(0, self.index).unsqueeze(1)

    def unpack(self, tokens: Tensor) -> Tensor:
        """Return [B, T, D] of packed tokens [N, 1, D], zeros in the padding."""
        batch, length = self.size
        whole = tokens.new_zeros(batch * length, tokens.shape[2])
        return whole.index_copy(0, self.index, tokens.squeeze(1)).unflatten(0, self.size)

    def rows(self, values: Tensor) -> Tensor:
        """Return what `values` [T, X] are of each token's place, [N, 1, 1, X]."""
        return values.index_select(0, self.index % self.size[1])[:, None, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
        """Return [N, H, 1, W] of queries, keys and values of that shape, each in its sequence."""
        query, key, value = (part.squeeze(2) for part in (query, key, value))
        starts, longest = self.starts, self.size[1]
        window = (-1, 0 if causal else -1)  # keys before and after a query; -1: all
        found = self.kernel(query, key, value, starts, starts, longest, longest, window_size=window)
        return found.unsqueeze(2)


def packing(hidden: Tensor, heads: int, mask: Tensor, real: Tensor | int) -> Packed | None:
    """Return how [B, T, D] is packed for blocks of some heads; None where it is to stay padded.

    `mask` [B, T] is True of real tokens; `real` are their places in B * T, int64 [N], or how many
    there are. Nothing here waits for the device.
    """
    number, device = real if isinstance(real, int) else len(real), hidden.device
    kind = device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    kernel = kernel_for(device, dtype, hidden.shape[2] // heads)
    if kernel is None or not number:
        return None
    if _SPARED:
        _SPARED[-1].append(number)
        return None
    if isinstance(real, int):
        # Not `nonzero`: the host would wait to hear how many there are, which it knows.
        real = (~mask.flatten()).to(torch.uint8).argsort(stable=True)[:number]
    starts = F.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return Packed(real, starts, (mask.shape[0], mask.shape[1]), kernel)


@contextlib.contextmanager
def padded() -> Iterator[list[int]]:
    """Have everything stay padded for a while, to compare with what is packed.

    Yields how many tokens would have been packed each time. It holds for all threads, since a
    gradient may compute blocks once more in one of its own.
    """
    _SPARED.append([])
    try:
        yield _SPARED[-1]
    finally:
        _SPARED.pop()


def kernel_for(device: torch.device, dtype: torch.dtype, width: int) -> Kernel | None:
    """Return torch's attention over packed sequences of heads of `width`; None where it has none.

    It is flash attention: of 16-bit numbers, on NVIDIA's GPUs since the A100.
    """
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    if width > WIDEST or width % STEP or torch.version.hip:
        return None
    if torch.cuda.get_device_capability(device) < FLASH:
        return None
    return torchs_own() if torch.backends.cuda.is_flash_attention_available() else None


@functools.cache
def torchs_own() -> Kernel | None:
    """Return the function where torch has it: since 2.10, and as it is called here since 2.11."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known: Kernel = varlen_attn  # type: ignore[assignment]  # more only where asked
    return known if "window_size" in inspect.signature(known).parameters else None
