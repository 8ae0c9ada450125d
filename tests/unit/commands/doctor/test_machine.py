import os

import pytest

from ehr_ray.commands.doctor import machine


@pytest.fixture
def root(tmp_path):
    """A machine with 8 GiB, of which a container in a container may use less."""

    def write(name, text):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    write("proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 9 kB\nMemAvailable: 4194304 kB\n")
    write("proc/cpuinfo", "processor : 0\nflags\t\t: fpu sse avx2 amx_tile other\n")
    return tmp_path, write


def test_the_tightest_limit_of_the_groups_above_a_process_counts(root):
    path, write = root
    write("proc/self/cgroup", "0::/pod/box\n")
    write("sys/fs/cgroup/pod/box/memory.max", "max\n")
    write("sys/fs/cgroup/pod/memory.max", "2147483648\n")
    write("sys/fs/cgroup/pod/box/cpu.max", "50000 100000\n")
    write("sys/fs/cgroup/pod/cpu.max", "max 100000\n")
    assert machine.memory_limit(path) == 2 << 30
    assert machine.cpu_quota(path) == 0.5
    assert machine.cpus(path) == (os.cpu_count(), 0.5)


def test_the_first_version_of_cgroups_is_read_too(root):
    path, write = root
    write("proc/self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n")
    write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1073741824\n")
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    write("sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "150000\n")
    write("sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    assert machine.memory_limit(path) == 1 << 30
    assert machine.cpu_quota(path) == 1.5


def test_without_groups_there_is_no_limit(root):
    path, _ = root
    assert machine.memory_limit(path) is None
    assert machine.cpu_quota(path) is None
    assert machine.cpus(path)[1] == len(os.sched_getaffinity(0))


def test_memory_and_flags_are_those_of_the_kernel(root, tmp_path):
    path, _ = root
    assert machine.memory(path) == (8 << 30, 4 << 30)
    assert machine.cpu_flags(path) == ["avx2", "amx_tile"]
    assert machine.memory(tmp_path / "none") == (0, 0)
    assert machine.cpu_flags(tmp_path / "none") == []
