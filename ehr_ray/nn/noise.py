"""Random numbers as a function of keys: the same for a patient whatever the batch or the rank.

A generator's draw depends on how many numbers were drawn before, so two workers would perturb a
patient otherwise than one does. Here a draw depends only on (seed, patient, position): integers
are hashed by the finaliser of splitmix64 (Steele et al. 2014).
"""

import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9 as a signed 64-bit integer
_SECOND = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_UNIT = 2.0**-24


def combine(*keys: Tensor | int) -> Tensor:
    """Return an int64 hash of the broadcast keys, the first a tensor; their order matters."""
    return _finished(_begun(*keys))


def extended(hashed: Tensor, *keys: Tensor | int) -> Tensor:
    """Return the hash of more keys: `combine(a, b, c)` is `extended(combine(a, b), c)`."""
    for key in keys:
        hashed = _finished(_mixed(_plus(hashed, key)))
    return hashed


def uniform(*keys: Tensor | int) -> Tensor:
    """Return float32 in [0, 1), one for each element of the broadcast keys.

    Draws for several purposes cost a GPU least as one: of keys [B] and purposes [P, 1], [P, B].
    """
    return _upper(_begun(*keys)).mul(_UNIT)


def normal(key: Tensor, size: int) -> Tensor:
    """Return `size` independent N(0, 1) for each key, float32 [*key.shape, size] (Box-Muller)."""
    position = torch.arange(size, device=key.device)
    bits = _begun(key.unsqueeze(-1), position)
    radius = _upper(bits).mul(-_UNIT).log1p_().mul_(-2).sqrt_()
    # Of the lower bits the finished hash has 31 places up: no sign comes so low.
    lower = (bits >> 31).bitwise_xor_(bits).bitwise_and_(0xFFFFFF)
    return lower.mul(2 * math.pi * _UNIT).cos_().mul_(radius)


def forked_rng(device: torch.device) -> AbstractContextManager[None]:
    """Return a block after which the generators of the CPU and of this device are as before it.

    Those of the other GPUs of a node are none of this rank's: torch would set them all back.
    """
    own = [] if device.type == "cpu" else [device]
    return torch.random.fork_rng(own, device_type=device.type if own else "cuda")


# What is slow of a hash is to start its operations, one after the other, on a device: so keys that
# are numbers are added on the host, memory is used again, and what no bit of a draw needs is left
# out. `x ^ (x >> 31)`, a hash's last operation, leaves the upper 24 bits of a draw as they are.


def _begun(*keys: Tensor | int) -> Tensor:
    """Return the hash of the keys before its last operation."""
    state = _mixed(_plus(_whole(keys[0]), 0))
    for key in keys[1:]:
        state = _mixed(_plus(_finished(state), key))
    return state


def _whole(key: Tensor | int) -> Tensor:
    assert isinstance(key, Tensor)
    return key.long()


def _plus(state: Tensor, key: Tensor | int) -> Tensor:
    """Return `state + key` and the constant that keeps a key of 0 from being none."""
    if isinstance(key, Tensor):
        return (state + key).add_(_signed(_GOLDEN))
    return state + _signed(_GOLDEN + key)


def _signed(number: int) -> int:
    """Return the 64-bit integer that adds as much as `number` does."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _mixed(x: Tensor) -> Tensor:
    """Mix in place; the last operation is left to `_finished`."""
    x = _shift(x, 30).bitwise_xor_(x).mul_(_FIRST)
    return _shift(x, 27).bitwise_xor_(x).mul_(_SECOND)


def _finished(x: Tensor) -> Tensor:
    return _shift(x, 31).bitwise_xor_(x)


def _upper(x: Tensor) -> Tensor:
    """Return the 24 upper bits."""
    return _shift(x, 40)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign bit."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)
