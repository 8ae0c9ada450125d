"""Memory of a process: whether it keeps what is freed, and what is never looked at for garbage."""

import ctypes
import ctypes.util
import functools
import gc
import sys
from collections.abc import Mapping

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
"""Parameters of glibc's mallopt(3)."""
LARGE = 1 << 20
"""Bytes of a block that is handed back as soon as it is freed."""


def keep_freed_memory() -> bool:
    """Tell glibc not to hand large blocks back to the system; False where there is no glibc.

    Else large tensors cost page faults at every step. Measured on SetVAE steps of 1,024 sets:
    system time falls from half of the run to 4 %.
    """
    return _told({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20})


def return_freed_memory() -> bool:
    """Tell glibc to hand large blocks back at once; False where there is no glibc.

    For a model that is gathered part by part, whose freed parts would stay otherwise.
    """
    return _told({_MMAP_THRESHOLD: LARGE})


@functools.cache
def pass_over_imports() -> None:
    """Have the garbage collector pass over what is there by now, once in a process.

    What imports have made, a million objects with torch, stays in any case; a full pass over it
    takes a fifth of a second, and a start makes objects enough for two of them.
    """
    gc.freeze()


def _told(settings: Mapping[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c") or "libc.so.6").mallopt
    except (OSError, AttributeError):  # musl, or no shared C library
        return False
    return all(mallopt(name, value) == 1 for name, value in settings.items())
