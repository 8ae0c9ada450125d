"""Trainings that are to end alike, for `benchmark --only gpu`: by ranks, after a kill, compiled.

Each is compared with a plain one by the weights it ends with and by the norms of its gradients.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from ehr_ray.commands.benchmark.gpu_checks import few
from ehr_ray.commands.benchmark.gpu_models import experiment, started
from ehr_ray.commands.benchmark.gpu_report import Report
from ehr_ray.commands.benchmark.gpu_steps import Steps, finish
from ehr_ray.commands.benchmark.ranks import (
    Group,
    Outcome,
    farthest,
    norms_apart,
    outcome,
    run_group,
)
from ehr_ray.errors import RunError
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import saved_progress
from ehr_ray.train.compiled import compile_blocks
from ehr_ray.train.meters import Sums
from ehr_ray.train.numerics import numerics
from ehr_ray.train.task import family_of

Mode = Literal["none", "default", "reduce-overhead"]
WEIGHT_TOLERANCE = 1e-3
"""Of a divided or compiled run's weights from a whole one's: it adds in another order."""
NORM_TOLERANCE = 0.01
"""Of its gradients' norms, relative; summed over two ranks in place of averaged they are 1 off. On
a CPU it was 1e-6 and less."""
CONTEXT_ROWS, TARGET_ROWS = 8, 4
"""Of a patient where blocks are compiled: few enough that nearly all have so many."""
REPLAYED = 6
"""Steps with compiled blocks, the latter half of which are timed."""
KILLED_AT: Final = 4
"""The step after which a run is killed; its last report, with its state, is one step older."""


def ranks_and_resume(report: Report, cohort: Path, place: Path, device: str) -> None:
    """Train by one rank, by two, and by one that is killed and goes on: all end alike.

    With `train.deterministic`, so that the one that goes on ends bit for bit as the whole one.
    Two ranks hold the whole model each, or a part of it, of a JEPA: its blocks are gathered one by
    one, the rest as a whole.
    """
    one, two = Group("nccl" if device == "cuda" else "gloo", 1, device), Group("gloo", 2, device)
    short = {"max_steps": 6, "report_steps": 3, "deterministic": True}
    small = experiment("set_vae", "tiny", cohort, place, 16, **short)
    jepa = experiment("jepa", "tiny", cohort, place, 16, max_steps=4, report_steps=4)

    def trained(plan: Experiment, run: str, group: Group) -> int | None:
        with prepared(plan, family_of(plan), on_ray=False) as data:
            return run_group(plan, data, place / run, group, report.part_left)

    def whole() -> None:
        trained(small, "one", one)

    def ranks() -> None:
        trained(small, "two", two)
        of = "of two ranks, difference from a whole run's"
        _alike(report, of, outcome(place / "two"), outcome(place / "one"))

    def resumed() -> None:
        trained(small, "killed", replace(one, kill=KILLED_AT))
        saved = saved_progress(place / "killed")
        first = trained(small, "killed", one)
        if saved is None or first != saved.step + 1:
            had = "nothing" if saved is None else f"step {saved.step}"
            raise RunError(f"killed: the run went on with step {first}, and {had} was saved")
        of = "of a run killed and resumed, difference from a whole run's"
        _alike(report, of, outcome(place / "killed"), outcome(place / "one"), exactly=True)

    def divided() -> None:
        for strategy in ("ddp", "fsdp"):
            trained(jepa, strategy, replace(two, strategy=strategy))
        of = "of two ranks by fsdp, difference from ddp's"
        _alike(report, of, outcome(place / "fsdp"), outcome(place / "ddp"))

    plain = f"one rank by {one.backend}"
    report.part(plain, 30, whole)
    report.part("two ranks", 30, ranks, needs=plain)
    report.part("kill and resume", 40, resumed, needs=plain)
    report.part("two ranks by fsdp", 50, divided)


def compiled_blocks(
    report: Report, cohort: Path, place: Path, device: str, modes: tuple[Mode, ...]
) -> None:
    """Train a JEPA as it is, and compiled in each of `modes`: all end alike."""
    ended: dict[Mode, Outcome] = {}

    def plain() -> None:
        ended["none"] = _compiled(report, cohort, place, device, "none")

    def compiled(mode: Mode) -> None:
        of = f"with train.compile={mode}, difference from a plain run's"
        _alike(report, of, _compiled(report, cohort, place, device, mode), ended["none"])

    first = "train.compile=none"
    report.part(first, 60, plain, checks=False)
    for mode in modes:
        report.part(f"train.compile={mode}", 60, compiled, mode, needs=first)


def _compiled(report: Report, cohort: Path, place: Path, device: str, mode: Mode) -> Outcome:
    """Train a JEPA with its blocks compiled, or as they are.

    Every step is of the same patients and hides as many rows, so that its shapes are those of the
    first: a graph is replayed only from the third step of a shape on.
    """
    plan = experiment("jepa", "tiny", cohort, place, 16, compile=mode)
    same = replace(plan.model, mask="future", context_rows=CONTEXT_ROWS, target_rows=TARGET_ROWS)
    plan = replace(plan, model=same)
    family, there = family_of(plan), LocalBackend(device)
    with prepared(plan, family, on_ray=False) as data:
        loader = loader_of(plan, family, data)
        batch, norms = few(loader), []
        model = started(plan, family, data.vocabulary, loader)
        if mode != "none":
            compile_blocks(model, mode, family.name, there.device)
        step = Steps(plan, family, there.wrap(model), loader, there, Sums(there))
        with numerics(plan.train):
            for number in range(REPLAYED):
                if number == REPLAYED // 2:
                    finish(device)
                    began = time.perf_counter()
                norms.append(step([batch]))
            step.check()
            finish(device)
        spent = (time.perf_counter() - began) / (REPLAYED - REPLAYED // 2)
    report.figures[f"train.compile={mode}, ms per step of {len(batch['mask'])}"] = 1000 * spent
    weights = {name: weight.detach().cpu() for name, weight in model.state_dict().items()}
    return Outcome(weights, [float(norm) for norm in norms])


def _alike(report: Report, of: str, ours: Outcome, theirs: Outcome, exactly: bool = False) -> None:
    """Check the weights and norms of two trainings; what they are `of` goes into the figures."""
    apart = farthest(ours.weights, theirs.weights)
    report.check(f"weights {of}", apart, 0.0 if exactly else WEIGHT_TOLERANCE)
    apart = norms_apart(ours.norms, theirs.norms)
    report.check(f"norms of gradients {of}", apart, 0.0 if exactly else NORM_TOLERANCE)
