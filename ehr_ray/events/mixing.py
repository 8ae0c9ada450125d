"""Integers to well-mixed ones, so that what belongs to a key is the same in every process.

`nn/noise.py` is the same function on tensors, where a device must compute it.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

GOLDEN: Final = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: its multiples lie far apart."""
FIRST: Final = 0xBF58476D1CE4E5B9
SECOND: Final = 0x94D049BB133111EB


def splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return splitmix64 of each element (Steele et al. 2014).

    >>> splitmix64(np.array([0], np.uint64))
    array([16294208416658607535], dtype=uint64)
    """
    with np.errstate(over="ignore"):
        x = x + np.uint64(GOLDEN)
        x ^= x >> np.uint64(30)
        x *= np.uint64(FIRST)
        x ^= x >> np.uint64(27)
        x *= np.uint64(SECOND)
    x ^= x >> np.uint64(31)
    return x


def unit_interval(mixed: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return the upper 53 bits of each element as a number in [0, 1)."""
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
