"""`benchmark --config`: how fast a config trains in one process, on one thread.

Steps are the training loop's own: forward, backward, clipping, optimizer and what a family does
after them, with the loader's threads at work beside them. They are timed in CPU seconds of the
training thread, which another program on the machine changes little.
"""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch, Scheduled, Terms
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.text_embedding import with_phrases
from ehr_ray.runtime.training.worker import loader_of, shares
from ehr_ray.train.allocator import keep_freed_memory
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.compiled import uncompiled
from ehr_ray.train.data_checks import check_batches, check_learnable
from ehr_ray.train.feed import Steps
from ehr_ray.train.loader import Loader
from ehr_ray.train.meters import Sums
from ehr_ray.train.numerics import numerics
from ehr_ray.train.optim import freeze, make_optimizer
from ehr_ray.train.seeds import noise_seed, scheduled_at
from ehr_ray.train.start import set_blocks
from ehr_ray.train.step import OptimizerStep, objective
from ehr_ray.train.task import family_of

Numbers = dict[str, float]
WARM = 1
STEPS = 5
FEED_STEPS = 50
"""Steps of the loader alone."""
COUNTED = 2
"""Steps whose floating-point operations are counted: counting takes a step's time again."""
MATRIX = 1024
"""Side of the square matrices whose product is the yardstick: they fit in a core's cache."""
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def model_speed(experiment: Experiment, *, steps: int = STEPS) -> Numbers:
    """Return the training speed of an experiment on its own cohort.

    Patients, and where a batch has them sets and tokens (without padding), per CPU second; FLOPs of
    a step by torch's counter and their share of what a matrix product reaches in this process;
    padding; waiting for data; what the loader gives a model that does nothing. Products and sums
    are as `train.matmul_precision` and `train.deterministic` say.
    """
    with ready(experiment) as trainer:
        size = sum(parameter.numel() for parameter in trainer.model.parameters())
        return {"million parameters": size / 1e6, **_numbers(trainer, steps)}


@contextmanager
def ready(experiment: Experiment) -> "Iterator[Trainer]":
    """Yield an experiment about to train on its own cohort, on one thread of this process."""
    keep_freed_memory()
    with prepared(experiment, family_of(experiment), on_ray=False) as data, threads(1):
        experiment = with_phrases(experiment, data.vocabulary, on_ray=False)
        trainer = Trainer(experiment, family_of(experiment, shares(experiment, data)), data)
        with numerics(experiment.train):
            yield trainer


class Trainer:
    """A model with its optimizer and data, ready to take steps.

    Args:
        experiment: what is trained.
        family: of the experiment, or of its task.
        data: the prepared rows.

    Raises ConfigError and InputError where a training would, before its first step.
    """

    def __init__(self, experiment: Experiment, family: AnyFamily, data: Prepared) -> None:
        self.experiment = experiment
        self.family = replace(family, loss=self._told)
        self._loss = family.loss
        self.said: Terms = {}
        if family.files.check:
            family.files.check(experiment.model)
        torch.manual_seed(experiment.seed)
        self.model: nn.Module = family.build(experiment.model, data.vocabulary).train()
        freeze(self.model, experiment.freeze)
        self._backend = LocalBackend()
        set_blocks(self.model, experiment.train, family.name, self._backend.device)
        self.optimizer = make_optimizer(self.model, experiment.train)
        self.loader: Loader = loader_of(experiment, family, data)
        check_batches(family, experiment.model, self.loader, self._backend.world)
        check_learnable(family, experiment.model, self.loader)
        self._taken = 0

    def step(self, micro: list[Batch]) -> None:
        """Take one optimizer step, as the loop does."""
        backend = self._backend
        take_step = OptimizerStep(
            self.experiment, self.family, self.model, self.optimizer, backend, Sums(backend)
        )
        take_step(micro, self._scheduled, self._seed())
        if self.family.training.after_step:
            self.family.training.after_step(self.model, self._scheduled)
        self._taken += 1

    def rehearse(self, steps: int) -> None:
        """Take the next steps and forget their number: all their shapes are then compiled."""
        before, batches = self._taken, self.batches()
        for _ in range(steps):
            self.step(next(batches))
        batches.close()
        self._taken = before

    def gradients(self, micro: list[Batch]) -> None:
        """Go forward and backward as a step does, and forget it."""
        reduced = self.experiment.train.precision == "bf16"
        for batch in micro:
            with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
                terms = self._loss(self.model, batch, self._scheduled, self._seed())
            objective(terms, {n: t.count.detach() for n, t in terms.items()}, 1).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def batches(self) -> Steps:
        """Yield the steps of one epoch after the other."""
        return self.loader.steps(0, sys.maxsize, self._backend)

    @property
    def _scheduled(self) -> Scheduled:
        """The values training ends with."""
        per_epoch = self.loader.steps_per_epoch
        last = per_epoch * self.experiment.train.max_epochs
        return scheduled_at(self.experiment, last, per_epoch)

    def _seed(self) -> int:
        """Return the noise seed of the step: each has noise of its own."""
        return noise_seed(self.experiment.seed, self._taken)

    def _told(self, model: nn.Module, batch: Batch, scheduled: Scheduled, seed: int) -> Terms:
        """Compute the loss and keep its terms for their counts."""
        self.said = self._loss(model, batch, scheduled, seed)
        return self.said


@dataclass(frozen=True)
class _Step:
    """What one step took and did."""

    cpu: float
    wall: float
    waited: float
    patients: int
    counted: float
    """Count of the family's first term: sets, where a batch has sets."""
    padding: tuple[float, float] | None
    """Tokens computed in vain, and in all."""


def _timed_steps(trainer: Trainer, steps: int) -> tuple[list[_Step], list[list[Batch]]]:
    """Take steps with the loader at work; its thread's CPU time is not counted."""
    if trainer.experiment.train.compile != "none":
        trainer.rehearse(WARM + steps)
    done: list[_Step] = []
    kept: list[list[Batch]] = []
    batches = trainer.batches()
    for number in range(WARM + steps):
        asked = time.perf_counter()
        micro = next(batches)
        ready, started = time.perf_counter(), time.thread_time()
        trainer.step(micro)
        cpu, ended = time.thread_time() - started, time.perf_counter()
        if number < WARM:
            continue
        kept += [micro] if len(kept) < COUNTED else []
        terms = trainer.said
        padding = terms.get("padding")
        done.append(
            _Step(
                cpu,
                ended - asked,
                ready - asked,
                patients_of(micro),
                # Of micro-batches the last is seen, so it stands for all of its step.
                float(next(iter(terms.values())).count) * len(micro),
                None if padding is None else (float(padding.sum), float(padding.count)),
            )
        )
    batches.close()
    return done, kept


def _numbers(trainer: Trainer, steps: int) -> Numbers:
    peaks = {name: matrix_rate(dtype) for name, dtype in TYPES.items()}
    done, kept = _timed_steps(trainer, steps)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    # A core's speed changes with what else runs on it, so the yardstick is taken on both sides.
    peaks = {name: max(peak, matrix_rate(TYPES[name])) for name, peak in peaks.items()}
    cpu = sum(step.cpu for step in done)
    floats = sum(flops_of(trainer, micro) for micro in kept)
    rate = floats / sum(step.cpu for step in done[: len(kept)])
    numbers = {"patients per CPU second": sum(step.patients for step in done) / cpu}
    if "num_sets" in kept[0][0]:
        numbers["sets per CPU second"] = sum(step.counted for step in done) / cpu
    padding = [step.padding for step in done if step.padding is not None]
    wasted, tokens = (sum(pair[i] for pair in padding) for i in (0, 1))
    if padding:
        numbers["tokens per CPU second"] = (tokens - wasted) / cpu
    numbers |= {
        "CPU ms per step": 1000 * cpu / len(done),
        "GFLOP per step": floats / len(kept) / 1e9,
        "GFLOP per CPU second": rate / 1e9,
        "peak memory of the process, MiB": memory,
    }
    for name, peak in peaks.items():
        numbers[f"matrix product in {name}, GFLOP per CPU second"] = peak / 1e9
    own = "bf16" if trainer.experiment.train.precision == "bf16" else "float32"
    for name, peak in peaks.items():
        note = " (training's type)" if name == own else ""
        numbers[f"utilisation of the {name} product{note}"] = rate / peak
    if padding:
        numbers["share of padding"] = wasted / max(1.0, tokens)
    waited, wall = sum(step.waited for step in done), sum(step.wall for step in done)
    numbers["share of time waiting for data"] = waited / wall
    return numbers | _feed(trainer, cpu / len(done))


def _feed(trainer: Trainer, step_cpu: float) -> Numbers:
    """Return what the loader alone gives and costs, beside the CPU seconds of a step."""
    batches = trainer.batches()
    began, spent = time.perf_counter(), time.process_time()
    patients = sum(patients_of(next(batches)) for _ in range(FEED_STEPS))
    wall, cpu = time.perf_counter() - began, (time.process_time() - spent) / FEED_STEPS
    batches.close()
    return {
        "null model, patients per second": patients / wall,
        "null model, CPU ms per step": 1000 * cpu,
        "feed's share of a step's CPU time": cpu / (cpu + step_cpu),
    }


def patients_of(micro: list[Batch]) -> int:
    """Return the patients of a step."""
    return sum(len(batch["subject_id"]) for batch in micro)


def flops_of(trainer: Trainer, micro: list[Batch]) -> float:
    """Return the floating-point operations of matrix products, forward and backward."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    # The counter does not see into what is compiled.
    counter = FlopCounterMode(display=False, custom_mapping=attention)
    with uncompiled(trainer.model), counter:
        trainer.gradients(micro)
    return float(counter.get_total_flops())


def _attention(query, key, value, *args, out_shape=None, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ARG001
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad, query, key, value, *args, out_shape=None, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ARG001
    # Five products where forward has two: the scores again, then two for each of their factors.
    return sdpa_flop_count(query, key, value) * 5 // 2


def matrix_rate(dtype: torch.dtype) -> float:
    """Return floating-point operations per CPU second of a square product, the best of five."""
    a, b = torch.ones(2, MATRIX, MATRIX, dtype=dtype)
    product, spent = torch.empty_like(a), []
    for _ in range(6):
        started = time.thread_time()
        torch.mm(a, b, out=product)
        spent.append(time.thread_time() - started)
    return 2.0 * MATRIX**3 / min(spent)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Have torch use so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
