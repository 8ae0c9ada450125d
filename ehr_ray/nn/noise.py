"""Random numbers as a function of keys: the same for a patient whatever the batch or the rank.

A generator's draw depends on how many numbers were drawn before, so two workers would perturb a
patient otherwise than one does. Here a draw depends only on (seed, patient, position): integers
are hashed by the finaliser of splitmix64 (Steele et al. 2014).
"""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_FIRST = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_SECOND = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB


def combine(*keys: Tensor | int) -> Tensor:
    """Return an int64 hash of the broadcast keys; the order of the keys matters."""
    tensor = next(k for k in keys if isinstance(k, Tensor))
    state = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for key in keys:
        state = _mix(state + _GOLDEN + key)
    return state


def uniform(*keys: Tensor | int) -> Tensor:
    """Return float32 in [0, 1), one for each element of the broadcast keys."""
    return _unit(_shift(combine(*keys), 40))


def normal(key: Tensor, size: int) -> Tensor:
    """Return `size` independent N(0, 1) for each key, float32 [*key.shape, size] (Box-Muller)."""
    position = torch.arange(size, device=key.device)
    bits = combine(key.unsqueeze(-1), position)
    radius = torch.sqrt(-2 * torch.log1p(-_unit(_shift(bits, 40))))
    return radius * torch.cos(2 * math.pi * _unit(bits & 0xFFFFFF))


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """Return a block after which the generators of the CPU and of this device are as before it.

    Those of the other GPUs of a node are none of this rank's: torch would set them all back.
    """
    own = [] if device.type == "cpu" else [device]
    return torch.random.fork_rng(own, device_type=device.type if own else "cuda")


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _FIRST
    x = (x ^ _shift(x, 27)) * _SECOND
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _unit(bits24: Tensor) -> Tensor:
    return bits24.to(torch.float32) * (1.0 / (1 << 24))
