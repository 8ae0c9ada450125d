"""Processes of this machine: which one left something, and whether it still runs."""

import os
import socket
from pathlib import Path


def machine() -> str:
    """Return what only processes of one boot of one machine have that see each other's ids.

    "" where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def started(pid: int) -> str:
    """Return when a process began, in ticks since boot; "" of one that is not there or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
