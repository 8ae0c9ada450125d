"""How fast a device is: products of matrices, and steps of a family with the loader at work."""

import contextlib
import math
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch, Scheduled
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.loader import Loader
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import make_optimizer, set_lr
from ehr_ray.train.seeds import noise_seed, scheduled_at, seed_step
from ehr_ray.train.step import OptimizerStep

PROFILED = 4
"""Steps whose kernels are timed at most: a record of each takes memory."""
COUNTED = 8
"""Steps whose floating-point operations are counted at most: batches are of unlike length."""
SYNCS = "syncs per step"
"""The figure of them."""
BUSY = "share of time a kernel is at work"
WAITS = "called a synchronizing CUDA operation"
"""What torch warns of where the host waits for the GPU."""


def matrix_rate(dtype: torch.dtype, device: str, side: int, seconds: float) -> float:
    """Return floating-point operations per second of a square product, the median of some seconds.

    Of random numbers, after half as long without a look at the clock: equal ones flip few bits,
    draw less power and run at a clock that no model keeps.
    """
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator, device=device).to(dtype) for _ in "ab")
    began, spent = time.perf_counter(), list[float]()
    while time.perf_counter() - began < 1.5 * seconds or not spent:
        started = time.perf_counter()
        torch.mm(a, b)
        finish(device)
        if started - began >= 0.5 * seconds:
            spent.append(time.perf_counter() - started)
    return 2.0 * side**3 / statistics.median(spent)


def step_speed(
    plan: Experiment,
    family: AnyFamily,
    model: nn.Module,
    loader: Loader,
    device: str,
    steps: int,
    peak: float,
    left: float = math.inf,
) -> dict[str, float | str]:
    """Return the figures of some steps with the loader at work, after some that are not timed.

    They are fewer, which the figures say, where so many would not end in the seconds that are left.
    """
    backend, until = LocalBackend(device), time.perf_counter() + left
    sums = Sums(backend)
    step = Steps(plan, family, model, loader, backend, sums)
    batches = loader.steps(0, sys.maxsize, backend)
    asked, steps = steps, _affordable(steps, step, batches, device, until)
    counted = min(COUNTED, loader.steps_per_epoch, steps)
    with ModelFlops(display=False) as counter:
        for _ in range(counted):
            step(next(batches))
    # Not in one step with the counter, which has the host wait for the lengths of sequences.
    with counted_syncs(device) as syncs:
        step(next(batches))
    sums.means("warm")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    timed = _timed(steps, step, batches, device)
    peak_memory = _peak(device)
    with _kernels(device) as busy:
        for _ in range(min(PROFILED, steps)):
            step(next(batches))
    batches.close()
    flops = counter.get_total_flops() / counted
    figures: dict[str, float | str] = {
        **timed,
        "TFLOP per step": flops / 1e12,
        "MFU": 1000 * flops / timed["ms per step"] / peak,
        "peak memory, MiB": peak_memory,
    }
    if steps < asked:
        figures["steps"] = f"{steps} of {asked}, for want of time"
    if busy is not None:
        figures[BUSY] = busy.share
    if syncs is not None:
        figures[SYNCS] = float(sum(WAITS in str(found.message) for found in syncs))
    padding = sums.means("train").get("train/padding")
    return figures if padding is None else figures | {"share of padding": padding}


def _affordable(
    steps: int, step: "Steps", batches: Iterator[list[Batch]], device: str, until: float
) -> int:
    """Take two steps, the first of which compiles and plans; return how many are to be timed.

    Those that are counted and profiled, and a step between, come beside them: a third is timed.
    """
    step(next(batches))
    finish(device)
    began = time.perf_counter()
    step(next(batches))
    finish(device)
    now = time.perf_counter()
    return max(1, int(min(steps, (until - now) / (now - began) / 3)))


def _timed(
    steps: int, step: "Steps", batches: Iterator[list[Batch]], device: str
) -> dict[str, float]:
    """Return the figures of the steps that are timed."""
    finish(device)
    began, waited, patients, tokens = time.perf_counter(), 0.0, 0, []
    for _ in range(steps):
        asked = time.perf_counter()
        micro = next(batches)
        waited += time.perf_counter() - asked
        patients += sum(len(batch["subject_id"]) for batch in micro)
        tokens += [batch["mask"].sum() for batch in micro if "mask" in batch]
        step(micro)
    step.check()
    finish(device)
    seconds = time.perf_counter() - began
    figures = {
        "patients per step": patients / steps,
        "patients per second": patients / seconds,
        "ms per step": 1000 * seconds / steps,
        "share of time the host waits for data": waited / seconds,
    }
    if tokens:
        figures["tokens per second"] = float(torch.stack(tokens).sum()) / seconds
    return figures


class Steps:
    """Steps of a training, one after the other, at the schedules and rate of its first."""

    def __init__(
        self,
        plan: Experiment,
        family: AnyFamily,
        model: nn.Module,
        loader: Loader,
        backend: LocalBackend,
        sums: Sums,
    ) -> None:
        optimizer = make_optimizer(model.train(), plan.train)
        set_lr(optimizer, plan.train.lr)
        self._take = OptimizerStep(plan, family, model, optimizer, backend, sums)
        self._scheduled: Scheduled = scheduled_at(plan, 0, loader.steps_per_epoch)
        self._seed, self._model, self._number = plan.seed, model, 0
        self._after = family.training.after_step

    def __call__(self, micro: list[Batch]) -> Tensor:
        """Take the next step; return the norm of its gradient before it is clipped, a scalar."""
        seed_step(self._seed, self._number, 0)
        norm = self._take(micro, self._scheduled, noise_seed(self._seed, self._number))
        if self._after:
            self._after(self._model, self._scheduled)
        self._number += 1
        return norm

    def check(self) -> None:
        """Raise RunError where a gradient was not finite."""
        self._take.check()


class ModelFlops(FlopCounterMode):
    """Counts the operations of a model and of its gradient.

    What backward computes once more to save memory is work of the method, not of the model.
    """

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        # Autograd computes gradients without a gradient of their own, and what is done again with.
        if torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled():
            return out
        return super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]


@dataclass
class _Busy:
    share: float = 0.0
    """Of the time, by the clock of the host, in which a kernel was at work."""


@contextlib.contextmanager
def _kernels(device: str) -> Iterator[_Busy | None]:
    """Yield what is told, at its end, of the kernels that a GPU ran within it; None on the CPU.

    Copies beside them are no work, and between two kernels a GPU waits for the host.
    """
    if device != "cuda":
        yield None
        return
    busy = _Busy()
    finish(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        began = time.perf_counter()
        yield busy
        finish(device)
        seconds = time.perf_counter() - began
    busy.share = kernel_seconds(profile.events()) / seconds


def kernel_seconds(events: Iterable[Any]) -> float:
    """Return how long at least one kernel of a profile's events ran: times are microseconds."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == "CUDA"
        and not event.name.startswith(("Memcpy", "Memset"))
        and not getattr(event, "is_user_annotation", False)
    )
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total / 1e6


@contextlib.contextmanager
def counted_syncs(device: str) -> Iterator[list[warnings.WarningMessage] | None]:
    """Yield the times the host waits for the GPU, as torch warns of them; None on the CPU."""
    if device != "cuda":
        yield None
        return
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


def finish(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
