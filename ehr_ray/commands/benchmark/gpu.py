"""`benchmark --only gpu`: whether everything trains on a GPU, rightly, and how fast.

Each family at its tiny and its published size, and the JEPA at its large one, takes steps in
float32 and bf16 on data made here. Beside speed it is checked that losses are the CPU's, that ranks
and a killed run end as one whole run does, and that phrases, validation and prediction work. Parts
are done one after the other, what matters most first; one that fails is told and ends no other, and
what is known is kept after each. `--device cpu` does the same at the smallest size, so that the
first run on a GPU is not the first run.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ehr_ray.commands.benchmark.gpu_checks import (
    computed,
    gradients_apart,
    losses_apart,
    packed_apart,
)
from ehr_ray.commands.benchmark.gpu_models import BATCH, experiment, experiments
from ehr_ray.commands.benchmark.gpu_report import Figures, Report
from ehr_ray.commands.benchmark.gpu_steps import Steps, finish, matrix_rate, step_speed
from ehr_ray.commands.benchmark.ranks import Group, farthest, run_group, weights
from ehr_ray.errors import InputError, RunError, UnrepeatableError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily
from ehr_ray.nn.sentence_encoder import SentenceEncoder
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.compiled import compile_blocks
from ehr_ray.train.loader import Loader
from ehr_ray.train.meters import Sums
from ehr_ray.train.numerics import numerics, repeatable_products
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.task import family_of
from ehr_ray.train.validate import validate

PRECISIONS: Final[tuple[Literal["float32", "bf16"], ...]] = ("bf16", "float32")
TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PATIENTS = {"cuda": 5100, "cpu": 500}
"""Of the cohort that is made where none is given. Steps of an epoch are even, so that train, of
4,059 of them, is to have a little less than a whole number of the largest batches."""
COMPARED = 16
"""Patients whose losses and gradients are computed on the CPU too."""
LOSS_TOLERANCE = {"float32": 1e-3, "bf16": 0.05}
"""Largest relative difference of a term of a loss from that of the CPU in float32."""
GRADIENT_TOLERANCE = {"float32": 0.02, "bf16": 0.7}
"""Largest of the gradient of a part of the model, as of `gradients_apart`. It is 1 where one is
missing or doubled. On a CPU bf16 gave 0.01 to 0.18 at the tiny sizes, and 0.44 in small parts of
models of sets, where the nearest vector changes, which in float32 it may do too, hardly ever."""
PACKED_TOLERANCE = 0.03
"""Of gradients of packed tokens from padded ones, both in bf16. Attention alone is rounded another
way: on a CPU 0.004 and 0.006, by the kernel of `tests/varlen.py`."""
PACKING = ("event_transformer", "jepa")
"""The families whose packed tokens are held against padded ones: causal and not."""
CONTEXT_ROWS, TARGET_ROWS = 8, 4
"""Of a patient where blocks are compiled: few enough that nearly all have so many."""
REPLAYED = 6
"""Steps with compiled blocks, the latter half of which are timed."""
WEIGHT_TOLERANCE = 1e-3
"""Of a killed or a divided run's weights from a whole one's: a GPU adds in another order."""


@dataclass(frozen=True)
class Scale:
    """How much is done on a kind of device."""

    first: tuple[str, ...]
    """Sizes that are trained before ranks, a kill and compiled blocks are tried."""
    last: tuple[str, ...]
    """Sizes that are trained after them."""
    batch_size: int | None
    """None: as `gpu_models` says."""
    steps: int
    matrix: int
    phrases: int
    compiled: tuple[Literal["none", "default", "reduce-overhead"], ...]
    matrix_seconds: float
    seconds: float
    """So long after the command no part is begun: a GPU is to be done within eight minutes."""


SCALES = {
    "cuda": Scale(
        ("published", "large"),
        ("tiny",),
        None,
        16,
        8192,
        20_000,
        ("none", "default", "reduce-overhead"),
        1.0,
        450.0,
    ),
    "cpu": Scale((), ("tiny",), 8, 1, 256, 8, ("none", "default"), 0.02, 3600.0),
}


def gpu_speed(
    cohort: Path,
    place: Path,
    device: str | None = None,
    kept: Callable[[Figures], None] = lambda _figures: None,
    began: float | None = None,
) -> Figures:
    """Return the figures of a device, `cuda` unless told otherwise; the faults under `faults`.

    `kept` is given those so far after each part. The limit of time counts from `began`, of
    `time.monotonic`, by default now.
    """
    device = device or "cuda"
    if device not in SCALES:
        raise InputError(f"--device {device}: no such device; give cuda or cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--only gpu: torch finds no GPU here; --device cpu does the same, smaller")
    scale = SCALES[device]
    repeatable_products()  # before any is made: what `train.deterministic` costs is told too
    report = Report(scale.seconds, kept, began=time.monotonic() if began is None else began)
    with report.watched():
        _parts(report, scale, cohort, place, device)
    return report.result()


def _parts(report: Report, scale: Scale, cohort: Path, place: Path, device: str) -> None:
    """Do all parts, what matters most first."""
    report.figures["device"] = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    peaks = {
        name: matrix_rate(dtype, device, scale.matrix, scale.matrix_seconds)
        for name, dtype in TYPES.items()
    }
    for name, peak in peaks.items():
        report.figures[f"matrix product in {name}, TFLOP per second"] = peak / 1e12

    def train_families(sizes: tuple[str, ...], seconds: float) -> None:
        for family, size, plan in experiments(cohort, place, sizes, scale.batch_size):
            name = f"{family} {size}"
            report.part(name, seconds, _family, report, name, plan, device, scale.steps, peaks)

    report.part("phrases", 30, _phrases, report, scale, device)
    train_families(scale.first, 40)
    report.part("packed tokens", 20, _packed, report, cohort, place, device)
    _ranks_and_resume(report, cohort, place, device)
    ended: dict[str, dict[str, Tensor]] = {}
    for mode in scale.compiled:
        name = f"train.compile={mode}"
        report.part(name, 60, _compiled, report, cohort, place, device, mode, ended)
    train_families(scale.last, 20)


def _family(
    report: Report, name: str, plan: Experiment, device: str, steps: int, peaks: dict[str, float]
) -> None:
    """Measure a family at a size: against the CPU, in both precisions, and at prediction."""
    family = family_of(plan)
    with prepared(plan, family, on_ray=False) as data:
        loader = loader_of(plan, family, data)
        few = loader.collate(loader.train.rows(range(min(COMPARED, len(loader.train)))))
        torch.manual_seed(plan.seed)
        built = family.build(plan.model, data.vocabulary)
        wanted = computed(plan, family, copy.deepcopy(built), few, "cpu")
        for number, precision in enumerate(PRECISIONS):
            here = replace(plan, train=replace(plan.train, precision=precision))
            model, label = copy.deepcopy(built).to(device), f"{name} {precision}"
            left = report.part_left / (1 + len(PRECISIONS) - number)  # prediction comes after them
            with numerics(here.train):
                found = computed(here, family, model, few, device)
                apart, limit = losses_apart(found, wanted), LOSS_TOLERANCE[precision]
                report.check(f"{label}, difference of losses from the CPU's", apart, limit)
                apart, part = gradients_apart(found, wanted)
                limit, of = GRADIENT_TOLERANCE[precision], "difference of gradients from the CPU's"
                report.check(f"{label}, {of}", apart, limit, part)
                del found
                peak = peaks[precision]
                speed = step_speed(here, family, model, loader, device, steps, peak, left)
            report.figures |= {f"{label}, {key}": value for key, value in speed.items()}
        with numerics(here.train):
            report.figures |= _applied(name, plan, family, model, data.vocabulary, loader, device)
        again = replace(here, train=replace(here.train, deterministic=True))
        what = f"{label}, time of a step with train.deterministic over without"

        def repeated() -> None:
            try:
                with numerics(again.train):
                    left = report.part_left
                    exact = step_speed(again, family, model, loader, device, steps, peak, left)
            except UnrepeatableError as error:  # a kernel, or cuBLAS, has no such way
                report.figures[what] = f"left out: {error}"
            else:
                report.figures[what] = _ratio(exact, speed)

        report.part(what, 10, repeated)


def _ratio(ours: Figures, theirs: Figures) -> float:
    """Return the time of a step over that of another."""
    return float(ours["ms per step"]) / float(theirs["ms per step"])


def _applied(
    name: str,
    plan: Experiment,
    family: AnyFamily,
    model: nn.Module,
    vocabulary: Vocabulary,
    loader: Loader,
    device: str,
) -> Figures:
    """Validate and predict on the device: a figure each."""
    model.eval()
    values = validate(family, model, loader, LocalBackend(device), precision="float32")
    rows = loader.tuning.rows(range(min(BATCH, len(loader.tuning))))
    predictor = Predictor(family, plan.model, vocabulary, model)
    batch = predictor.batch(rows)
    predictor.outputs(batch)
    began = time.perf_counter()
    found = predictor.outputs(batch)["embedding"]
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
    small = experiment("set_vae", "tiny", cohort, place, 16, max_steps=6, report_steps=3)
    jepa = experiment("jepa", "tiny", cohort, place, 16, max_steps=4, report_steps=4)

    def trained(plan: Experiment, run: str, *groups: Group) -> dict[str, Tensor]:
        with prepared(plan, family_of(plan), on_ray=False) as data:
            for group in groups:
                run_group(plan, data, place / run, group, report.part_left)
        return weights(place / run)

    def whole() -> None:
        trained(small, "one", one)

    def ranks() -> None:
        name = "weights of two ranks, difference from a whole run's"
        apart = farthest(trained(small, "two", two), weights(place / "one"))
        report.check(name, apart, WEIGHT_TOLERANCE)

    def resumed() -> None:
        name = "weights of a run killed and resumed, difference from a whole run's"
        found = trained(small, "killed", replace(one, kill=4), one)
        limit = 0.0 if device == "cpu" else WEIGHT_TOLERANCE
        report.check(name, farthest(found, weights(place / "one")), limit)

    def divided() -> None:
        name = "weights of two ranks by fsdp, difference from ddp's"
        for strategy in ("ddp", "fsdp"):
            trained(jepa, strategy, replace(two, strategy=strategy))
        apart = _apart(weights(place / "fsdp"), weights(place / "ddp"))
        report.check(name, apart, WEIGHT_TOLERANCE)

    report.part(f"one rank by {one.backend}", 30, whole)
    report.part("two ranks", 30, ranks)
    report.part("kill and resume", 40, resumed)
    report.part("two ranks by fsdp", 50, divided)


def _packed(report: Report, cohort: Path, place: Path, device: str) -> None:
    """Compare gradients of packed tokens with those of padded ones, in bf16."""
    for name in PACKING:
        plan = experiment(name, "tiny", cohort, place, 16, precision="bf16")
        family, what = family_of(plan), f"{name}, difference of gradients of packed tokens"
        with prepared(plan, family, on_ray=False) as data:
            loader = loader_of(plan, family, data)
            few = loader.collate(loader.train.rows(range(min(COMPARED, len(loader.train)))))
            torch.manual_seed(plan.seed)
            model = family.build(plan.model, data.vocabulary).to(device)
        with numerics(plan.train):
            found = packed_apart(plan, family, model, few, device)
        if found is None:
            report.figures[what] = "left out: no kernel for packed tokens here"
        else:
            report.check(what, found[0], PACKED_TOLERANCE, found[1])


def _compiled(
    report: Report,
    cohort: Path,
    place: Path,
    device: str,
    mode: Literal["none", "default", "reduce-overhead"],
    ended: dict[str, dict[str, Tensor]],
) -> None:
    """Train a JEPA with its blocks compiled, and as they are: the same weights, kept in `ended`.

    Every step is of the same patients and hides as many rows, so that its shapes are those of the
    first: a graph is replayed only from the third step of a shape on.
    """
    plan = experiment("jepa", "tiny", cohort, place, 16, compile=mode)
    same = replace(plan.model, mask="future", context_rows=CONTEXT_ROWS, target_rows=TARGET_ROWS)
    plan = replace(plan, model=same)
    family, there = family_of(plan), LocalBackend(device)
    with prepared(plan, family, on_ray=False) as data:
        loader = loader_of(plan, family, data)
        few = loader.collate(loader.train.rows(range(min(COMPARED, len(loader.train)))))
        torch.manual_seed(plan.seed)
        model = family.build(plan.model, data.vocabulary)
        if mode != "none":
            compile_blocks(model, mode, family.name, there.device)
        step = Steps(plan, family, there.wrap(model), loader, there, Sums(there))
        with numerics(plan.train):
            for number in range(REPLAYED):
                if number == REPLAYED // 2:
                    finish(device)
                    began = time.perf_counter()
                step([few])
            step.check()
            finish(device)
        spent = (time.perf_counter() - began) / (REPLAYED - REPLAYED // 2)
    report.figures[f"train.compile={mode}, ms per step of {len(few['mask'])}"] = 1000 * spent
    ended[mode] = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    if mode != "none":
        name = f"weights with train.compile={mode}, difference from a plain run's"
        report.check(name, _apart(ended[mode], ended["none"]), WEIGHT_TOLERANCE)


def _apart(weights: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Return the largest difference of the weights of two trainings.

    Biases of keys have no gradient but rounding, which Adam makes as large as any other.
    """
    ours = {n: w for n, w in weights.items() if not n.endswith("query_key_value.bias")}
    return farthest(ours, others)


def _phrases(report: Report, scale: Scale, device: str) -> None:
    """Embed made-up phrases by a sentence transformer, if there is one."""
    try:
        encoder = SentenceEncoder("all-MiniLM-L6-v2")
    except (InputError, ImportError) as error:
        report.figures["phrases embedded per second"] = f"left out: {error}"
        return
    texts = [f"heart rate {'very ' * (n % 5)}high, {n} beats" for n in range(scale.phrases)]
    encoder.encode(texts)  # the shapes of all batches: what is planned for each is no embedding
    began = time.perf_counter()
    encoder.encode(texts)
    finish(device)
    report.figures["phrases embedded per second"] = len(texts) / (time.perf_counter() - began)
