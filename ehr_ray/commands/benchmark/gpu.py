"""`benchmark --only gpu`: whether everything trains on a GPU, rightly, and how fast.

Each family at its tiny and its published size takes steps in float32 and bf16 on data made here.
Beside speed it is checked that losses are the CPU's, that ranks and a killed run end as one whole
run does, and that phrases, validation and prediction work. `--device cpu` does the same at the
smallest size, so that the first run on a GPU is not the first run.
"""

import resource
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ehr_ray.commands.benchmark.gpu_models import SIZES, experiment, experiments
from ehr_ray.commands.benchmark.ranks import Group, farthest, run_group, weights
from ehr_ray.errors import ConfigError, InputError, RunError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch
from ehr_ray.nn.sentence_encoder import SentenceEncoder
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.feed import move
from ehr_ray.train.loader import Loader
from ehr_ray.train.loop import train
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import make_optimizer, set_lr
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.seeds import noise_seed, scheduled_at, seed_step
from ehr_ray.train.step import OptimizerStep, loss_terms
from ehr_ray.train.task import family_of
from ehr_ray.train.validate import validate

Figures = dict[str, float | str]
PRECISIONS: Final[tuple[Literal["float32", "bf16"], ...]] = ("float32", "bf16")
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SECONDS = 420.0
"""After so long no further training is begun: the whole is to end within eight minutes."""
LOSS_TOLERANCE = {"float32": 1e-3, "bf16": 0.05}
"""Largest relative difference of a term of the first loss from that of the CPU in float32."""
WEIGHT_TOLERANCE = 1e-3
"""Of a killed or a divided run's weights from a whole one's: a GPU adds in another order."""


@dataclass(frozen=True)
class Scale:
    """How much is done on a kind of device."""

    sizes: tuple[str, ...]
    batch_size: int
    steps: int
    matrix: int
    phrases: int


SCALES = {
    "cuda": Scale(SIZES, 256, 20, 8192, 20_000),
    "cpu": Scale(SIZES[:1], 8, 1, 256, 8),
}


@dataclass
class Report:
    """Figures so far, and what was found wrong."""

    figures: Figures = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def check(self, name: str, value: float, limit: float) -> None:
        """Keep a figure that must not be above a limit."""
        self.figures[name] = value
        if not value <= limit:
            self.faults.append(f"{name}: {value:.3g}, above {limit:.3g}")


def gpu_speed(cohort: Path, place: Path, device: str | None = None) -> Figures:
    """Return the figures of a device, `cuda` unless told otherwise; the faults under `faults`."""
    device = device or "cuda"
    if device not in SCALES:
        raise InputError(f"--device {device}: no such device; give cuda or cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--only gpu: torch finds no GPU here; --device cpu does the same, smaller")
    scale, began, report = SCALES[device], time.monotonic(), Report()
    report.figures["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    peaks = {name: matrix_rate(dtype, device, scale.matrix) for name, dtype in TYPES.items()}
    for name, peak in peaks.items():
        report.figures[f"matrix product in {name}, TFLOP per second"] = peak / 1e12
    _ranks_and_resume(report, cohort, place, device)
    _compiled(report, cohort, place, device)
    _phrases(report, scale, device)
    for family, size, plan in experiments(cohort, place, scale.sizes, scale.batch_size):
        if time.monotonic() - began > SECONDS:
            report.figures[f"{family} {size}"] = "left out: no time left"
            continue
        _family(report, f"{family} {size}", plan, device, scale.steps, peaks)
    report.figures["seconds in all"] = time.monotonic() - began
    if report.faults:
        report.figures["faults"] = "; ".join(report.faults)
    return report.figures


def matrix_rate(dtype: torch.dtype, device: str, side: int) -> float:
    """Return floating-point operations per second of a square product, the best of five."""
    a = torch.ones(side, side, dtype=dtype, device=device)
    spent = []
    for _ in range(6):
        _finish(device)
        started = time.perf_counter()
        torch.mm(a, a)
        _finish(device)
        spent.append(time.perf_counter() - started)
    return 2.0 * side**3 / min(spent[1:])


def _family(
    report: Report, name: str, plan: Experiment, device: str, steps: int, peaks: dict[str, float]
) -> None:
    """Measure a family at a size: against the CPU, in both precisions, and at prediction."""
    family = family_of(plan)
    with prepared(plan, family, on_ray=False) as data:
        loader = loader_of(plan, family, data)
        (batch,) = next(iter(loader.train_steps(0, 0, 0, 1)))
        wanted = _losses(plan, family, data.vocabulary, batch, "cpu")
        for precision in PRECISIONS:
            here = replace(plan, train=replace(plan.train, precision=precision))
            found = _losses(here, family, data.vocabulary, batch, device)
            apart = max(abs(found[n] - w) / max(abs(w), 1e-6) for n, w in wanted.items())
            label = f"{name} {precision}"
            limit = LOSS_TOLERANCE[precision]
            report.check(f"{label}, difference of losses from the CPU's", apart, limit)
            report.figures |= {
                f"{label}, {key}": value
                for key, value in _speed(
                    here, family, data.vocabulary, loader, device, steps, peaks[precision]
                ).items()
            }
        report.figures |= _applied(name, plan, family, data.vocabulary, loader, device)


def _losses(
    plan: Experiment, family: AnyFamily, vocabulary: Vocabulary, batch: Batch, device: str
) -> dict[str, float]:
    """Return the mean of each trained term at the first step."""
    torch.manual_seed(plan.seed)
    model = family.build(plan.model, vocabulary).to(device)
    scheduled = scheduled_at(plan, 0, 1)
    there = move(batch, torch.device(device))
    with torch.no_grad():
        terms = loss_terms(family, model, there, scheduled, 1, plan.train.precision)
    return {n: float(t.sum) / max(float(t.count), 1.0) for n, t in terms.items() if t.coef}


def _speed(
    plan: Experiment,
    family: AnyFamily,
    vocabulary: Vocabulary,
    loader: Loader,
    device: str,
    steps: int,
    peak: float,
) -> dict[str, float]:
    """Return the figures of some steps with the loader at work, after one that is not counted."""
    torch.manual_seed(plan.seed)
    backend = LocalBackend(device)
    model = backend.wrap(family.build(plan.model, vocabulary)).train()
    optimizer, sums = make_optimizer(model, plan.train), Sums(backend)
    set_lr(optimizer, plan.train.lr)
    take = OptimizerStep(plan, family, model, optimizer, backend, sums)
    scheduled = scheduled_at(plan, 0, loader.steps_per_epoch)

    def step(number: int, micro: list[Batch]) -> None:
        seed_step(plan.seed, number, 0)
        take(micro, scheduled, noise_seed(plan.seed, number))

    batches = loader.steps(0, sys.maxsize, backend)
    micro = next(batches)
    step(0, micro)
    with FlopCounterMode(display=False) as counter, _counted_syncs(device) as syncs:
        step(1, micro)
    sums.means("warm")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    _finish(device)
    began, waited, patients = time.perf_counter(), 0.0, 0
    for number in range(2, 2 + steps):
        asked = time.perf_counter()
        micro = next(batches)
        waited += time.perf_counter() - asked
        patients += sum(len(batch["subject_id"]) for batch in micro)
        step(number, micro)
    take.check()
    _finish(device)
    seconds = time.perf_counter() - began
    batches.close()
    figures = {
        "patients per second": patients / seconds,
        "ms per step": 1000 * seconds / steps,
        "MFU": counter.get_total_flops() * steps / seconds / peak,
        "share of time waiting for data": waited / seconds,
        "peak memory, MiB": _peak(device),
    }
    if syncs is not None:
        figures["syncs per step"] = float(len(syncs))
    padding = sums.means("train").get("train/padding")
    if padding is not None:
        figures["share of padding"] = padding
    tokens = _tokens(micro)
    if tokens:
        figures["tokens per second"] = tokens * steps / seconds
    return figures


def _tokens(micro: list[Batch]) -> int:
    """Return the real tokens of a step; 0 where a batch has no mask of them."""
    return sum(int(batch["mask"].sum()) for batch in micro if "mask" in batch)


def _applied(
    name: str,
    plan: Experiment,
    family: AnyFamily,
    vocabulary: Vocabulary,
    loader: Loader,
    device: str,
) -> Figures:
    """Validate and predict on the device: a figure each."""
    backend = LocalBackend(device)
    model = backend.wrap(family.build(plan.model, vocabulary)).eval()
    values = validate(family, model, loader, backend, precision="float32")
    rows = loader.tuning.rows(range(len(loader.tuning)))
    predictor = Predictor(family, plan.model, vocabulary, model)
    began = time.perf_counter()
    found = predictor.outputs(predictor.batch(rows))["embedding"]
    spent = time.perf_counter() - began
    if not np.isfinite(values["val/objective"]) or not bool(found.isfinite().all()):
        raise RunError(f"{name}: validation or prediction on {device} is not finite")
    return {f"{name}, patients predicted per second": len(rows) / spent}


def _ranks_and_resume(report: Report, cohort: Path, place: Path, device: str) -> None:
    """Train by one rank, by two, and by one that is killed and goes on: the same weights.

    Two ranks hold the whole model each, or a part of it, of a JEPA: its blocks are gathered one by
    one, the rest as a whole.
    """
    one, two = Group("nccl" if device == "cuda" else "gloo", 1, device), Group("gloo", 2, device)
    plan = experiment("set_vae", "tiny", cohort, place, 16, max_steps=6, report_steps=3)
    with prepared(plan, family_of(plan), on_ray=False) as data:
        run_group(plan, data, place / "one", one)
        run_group(plan, data, place / "two", two)
        run_group(plan, data, place / "killed", replace(one, kill=4))
        run_group(plan, data, place / "killed", one)
    whole = weights(place / "one")
    for said, run in (("two ranks", "two"), ("a run killed and resumed", "killed")):
        apart = farthest(whole, weights(place / run))
        exact = run == "killed" and device == "cpu"
        name = f"weights of {said}, difference from a whole run's"
        report.check(name, apart, 0.0 if exact else WEIGHT_TOLERANCE)
    plan = experiment("jepa", "tiny", cohort, place, 16, max_steps=4, report_steps=4)
    name = "weights of two ranks by fsdp, difference from ddp's"
    try:
        with prepared(plan, family_of(plan), on_ray=False) as data:
            for strategy in ("ddp", "fsdp"):
                run_group(plan, data, place / strategy, replace(two, strategy=strategy))
    except RunError as error:  # gloo may not carry the parts of a GPU: the rest is worth measuring
        report.faults.append(f"{name}: {error}")
        return
    report.check(name, _apart(place / "fsdp", place / "ddp"), WEIGHT_TOLERANCE)


def _compiled(report: Report, cohort: Path, place: Path, device: str) -> None:
    """Train a JEPA with its blocks compiled, and as they are: the same weights."""
    modes = ("none", "default", "reduce-overhead") if device == "cuda" else ("none", "default")
    for mode in modes:
        plan = experiment("jepa", "tiny", cohort, place, 16, max_steps=4, compile=mode)
        family, run = family_of(plan), place / f"compile-{mode}"
        name = f"weights with train.compile={mode}, difference from a plain run's"
        try:
            with prepared(plan, family, on_ray=False) as data:
                loader = loader_of(plan, family, data)
                train(plan, family, data.vocabulary, loader, LocalBackend(device), run)
        except (ConfigError, RunError, RuntimeError) as error:  # no compiler, a graph refused
            report.faults.append(f"{name}: {str(error).splitlines()[0]}")
            continue
        if mode != "none":
            report.check(name, _apart(run, place / "compile-none"), WEIGHT_TOLERANCE)


def _apart(run: Path, other: Path) -> float:
    """Return the largest difference of the weights of two runs.

    Biases of keys have no gradient but rounding, which Adam makes as large as any other.
    """
    ours = {n: w for n, w in weights(run).items() if not n.endswith("query_key_value.bias")}
    return farthest(ours, weights(other))


def _phrases(report: Report, scale: Scale, device: str) -> None:
    """Embed made-up phrases by a sentence transformer, if there is one."""
    try:
        encoder = SentenceEncoder("all-MiniLM-L6-v2")
    except (InputError, ImportError) as error:
        report.figures["phrases embedded per second"] = f"left out: {error}"
        return
    texts = [f"heart rate {number} beats per minute" for number in range(scale.phrases)]
    encoder.encode(texts[:8])
    began = time.perf_counter()
    encoder.encode(texts)
    _finish(device)
    report.figures["phrases embedded per second"] = len(texts) / (time.perf_counter() - began)


@contextmanager
def _counted_syncs(device: str) -> Iterator[list[warnings.WarningMessage] | None]:
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


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
