import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.utils.checkpoint import checkpoint

from ehr_ray.commands.benchmark import gpu_steps
from ehr_ray.commands.benchmark.gpu_steps import ModelFlops, kernel_seconds, step_speed
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.task import family_of


def event(name, start, end, kind=DeviceType.CUDA, annotation=False):
    return SimpleNamespace(
        name=name,
        device_type=kind,
        is_user_annotation=annotation,
        time_range=SimpleNamespace(start=start, end=end),
    )


EVENTS = [
    event("gemm", 50e6, 60e6),
    event("norm", 10e6, 20e6),
    event("gemm beside it, on another stream", 15e6, 25e6),
    event("short one within it", 16e6, 17e6),
    event("aten::mm", 0.0, 100e6, DeviceType.CPU),
    event("Memcpy HtoD (Pinned -> Device)", 30e6, 40e6),
    event("Memset (Device)", 41e6, 42e6),
    event("Optimizer.step#AdamW.step", 0.0, 100e6, annotation=True),
]


def test_a_gpu_is_busy_while_a_kernel_runs_and_not_between_two_nor_while_it_copies():
    assert kernel_seconds(EVENTS) == pytest.approx(25.0)
    assert kernel_seconds([]) == 0


@pytest.fixture
def faked_cuda(monkeypatch):
    """What torch tells of a GPU, made up; tensors stay on the CPU. Returns the modes of syncs."""
    modes = []

    @contextlib.contextmanager
    def profile(activities):
        assert activities == [torch.profiler.ProfilerActivity.CUDA]
        yield SimpleNamespace(events=lambda: EVENTS)

    monkeypatch.setattr(torch.profiler, "profile", profile)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    monkeypatch.setattr(gpu_steps, "LocalBackend", lambda _device: LocalBackend())
    return modes


def test_waits_of_the_host_are_counted_one_by_one_within_and_not_after(faked_cuda):
    with gpu_steps.counted_syncs("cuda") as found:
        assert faked_cuda == ["warn"]
        for _ in range(3):
            warnings.warn(f"{gpu_steps.WAITS} in a step", stacklevel=1)
    assert len(found) == 3
    assert faked_cuda == ["warn", "default"]
    with gpu_steps.counted_syncs("cpu") as found:
        assert found is None


def test_the_figures_of_a_gpu_are_told_where_there_is_one(
    faked_cuda, tiny_experiment, make_loader, synthetic_vocabulary
):
    experiment = tiny_experiment("jepa")
    family, loader = family_of(experiment), make_loader(experiment)
    model = family.build(experiment.model, synthetic_vocabulary)

    def told(device):
        return step_speed(experiment, family, model, loader, device, 2, 1e12)

    here, there = told("cpu"), told("cuda")
    assert "steps" not in here
    late = step_speed(experiment, family, model, loader, "cpu", 2, 1e12, 0.0)
    assert late["steps"] == "1 of 2, for want of time"
    assert 0 < here["patients per step"] <= loader.config.batch_size
    assert there.keys() - here.keys() == {"share of time a kernel is at work", "syncs per step"}
    assert there["syncs per step"] == 0
    assert there["share of time a kernel is at work"] > 0
    assert there["peak memory, MiB"] == 3
    assert faked_cuda == ["warn", "default"]
    assert there["MFU"] > 0


def test_the_yardstick_multiplies_numbers_that_differ(monkeypatch):
    """Equal ones draw less power, so that a GPU has a clock that no model sees."""
    real, seen = torch.mm, []

    def multiplied(a, b):
        seen.append((a, b))
        return real(a, b)

    monkeypatch.setattr(torch, "mm", multiplied)
    rates = [gpu_steps.matrix_rate(t, "cpu", 32, 0.001) for t in (torch.float32, torch.bfloat16)]
    assert min(rates) > 0
    a, b = seen[0]
    assert len(a.unique()) > 900
    assert not torch.equal(a, b)


def test_what_is_computed_once_more_is_no_work_of_the_model():
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.ones(5, 8)
    found = []
    for recomputed in (False, True):
        with ModelFlops(display=False) as counter:
            out = checkpoint(model, x, use_reentrant=False) if recomputed else model(x)
            out.sum().backward()
        found.append(counter.get_total_flops())
    # Of the first layer's gradient the input's is not asked for.
    assert found == [2 * 5 * (8 * 16 * 2 + 16 * 4 * 3)] * 2
