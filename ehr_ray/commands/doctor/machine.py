"""What this process may use of the machine: CPUs, memory, as the kernel and its cgroups say."""

import os
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path("/")
FLAGS: Final = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
"""What of a processor decides how fast torch is."""
_UNLIMITED: Final = 1 << 60
"""Bytes above which version 1 of cgroups means no limit."""


def cpus(root: Path = ROOT) -> tuple[int, float]:
    """Return the CPUs of the machine, and those this process may use: by affinity and quota."""
    count = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else count
    quota = cpu_quota(root)
    return count, float(affinity) if quota is None else min(float(affinity), quota)


def cpu_quota(root: Path = ROOT) -> float | None:
    """Return the CPUs that the cgroup's quota allows; None without one."""
    quotas = []
    for folder in _folders(root, "cpu"):
        if words := _read(folder / "cpu.max").split():
            limit, period = words[0], words[1]
        else:
            limit = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")
        if limit.isdigit() and period.isdigit() and int(period):
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """Return the bytes that the cgroup allows; None without a limit."""
    limits = []
    for folder in _folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text.isdigit() and int(text) < _UNLIMITED:
                limits.append(int(text))
    return min(limits, default=None)


def memory(root: Path = ROOT) -> tuple[int, int]:
    """Return the bytes of memory of the machine, and those available; 0 where it does not say."""
    text = _read(root / "proc/meminfo")
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE))
    return int(found.get("MemTotal", 0)) * 1024, int(found.get("MemAvailable", 0)) * 1024


def cpu_flags(root: Path = ROOT) -> list[str]:
    """Return which of `FLAGS` the processor has."""
    line = re.search(r"^flags\s*:(.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    there = line[1].split() if line else []
    return [flag for flag in FLAGS if flag in there]


def _folders(root: Path, controller: str) -> list[Path]:
    """Return the cgroup folders that bind this process: its own and those above it."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if names else "")
        own = base / path.lstrip("/")
        found += [own, *(p for p in own.parents if p.is_relative_to(base))]
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
