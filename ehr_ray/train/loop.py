"""The training loop, once for every family and every backend."""

import time
from collections.abc import Generator
from pathlib import Path

import torch

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch
from ehr_ray.train import history
from ehr_ray.train.backend import Backend, together
from ehr_ray.train.checkpoint import (
    Progress,
    load_state,
    save_checkpoint,
    save_state,
    saved_progress,
)
from ehr_ray.train.data_checks import check_learnable, check_measured
from ehr_ray.train.initialise import by_part, initialise
from ehr_ray.train.loader import Loader
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import (
    freeze,
    learning_rate,
    make_optimizer,
    set_lr,
    set_weight_decay,
    weight_decay,
)
from ehr_ray.train.report import SILENT, Watch, warnings_of
from ehr_ray.train.seeds import knobs_at, seed_step
from ehr_ray.train.selection import cycles_without_better, update_best, update_others
from ehr_ray.train.step import move, optimise
from ehr_ray.train.task import prepare_task_head
from ehr_ray.train.validate import evaluate, summary


def train(
    experiment: Experiment,
    family: AnyFamily,
    vocabulary: Vocabulary,
    loader: Loader,
    backend: Backend,
    run: Path,
    watch: Watch = SILENT,
) -> Progress:
    """Train to the end of the plan, from the run's last state if it has one.

    The result depends on the experiment and the data alone: order, noise and schedules are
    functions of (seed, step), so a run killed anywhere ends with the same weights.
    """
    plan = experiment.train
    fresh = saved_progress(run) is None
    if fresh and family.check:
        family.check(experiment.model)
    torch.manual_seed(experiment.seed)
    module = family.build(experiment.model, vocabulary)
    if fresh and experiment.init_from:
        lines = initialise(module, experiment.init_from, family, vocabulary)
        if backend.rank == 0:
            run.mkdir(parents=True, exist_ok=True)
            (run / "init_from.txt").write_text("\n".join(lines) + "\n")
            watch.on_lines(by_part(lines))
    freeze(module, experiment.freeze)
    loader.check(backend.world, family.compares(experiment.model) if family.compares else None)
    if (few := check_learnable(family, experiment.model, loader)) and fresh and backend.rank == 0:
        watch.on_lines(few)
    if fresh and family.begin:
        everybody = loader.train.rows(range(len(loader.train)))
        family.begin(module, loader.collate(everybody))
    if family.outcome is not None:
        module.to(backend.device)
        first = loader.train_steps(0, 0, backend.rank, backend.world)
        batches = (move(batch, backend.device) for micro in first for batch in micro)
        idle = prepare_task_head(family, module, batches, backend, fresh=fresh)
        first.close()
        if fresh and backend.rank == 0:
            watch.on_lines(by_part([f"{name}: frozen, out of the task's reach" for name in idle]))
    model = backend.wrap(module)
    optimizer = make_optimizer(module, plan)
    progress = load_state(run, module, optimizer) or Progress()

    per_epoch = loader.steps_per_epoch
    total = min(plan.max_epochs * per_epoch, plan.max_steps or plan.max_epochs * per_epoch)
    every = plan.report_steps or per_epoch
    sums = Sums(backend)
    clock = time.perf_counter() - progress.seconds
    waited = 0.0
    steps = _steps(loader, backend, progress.step, total)
    while progress.step < total and not progress.finished:
        step = progress.step
        seed_step(experiment.seed, step, backend.rank)
        knobs = knobs_at(experiment, step, per_epoch)
        lr = learning_rate(step, total, plan, progress.reductions, per_epoch)
        set_lr(optimizer, lr, step / per_epoch)
        set_weight_decay(optimizer, weight_decay(step, total, plan))
        asked = time.perf_counter()
        micro = next(steps)
        waited += time.perf_counter() - asked
        norm = optimise(family, model, optimizer, micro, knobs, experiment, backend, sums)
        if family.after_step:
            family.after_step(module, knobs)
        progress.step = step + 1
        if backend.rank == 0:
            watch.on_step(progress.step, total)
        if plan.keep_steps and progress.step % plan.keep_steps == 0:
            with together(backend):
                if backend.rank == 0:
                    kept = f"checkpoints/{progress.step:08d}"
                    save_checkpoint(run, module, experiment, vocabulary, kept)
        if progress.step % every == 0 or progress.step == total:
            values = sums.means("train")
            values |= evaluate(family, module, loader, backend, precision=plan.precision)
            values |= summary(family, values)
            check_measured(family, values, loader, progress.best)
            passed = time.perf_counter() - clock - progress.seconds
            progress.seconds += passed
            row = {"step": progress.step, "epoch": progress.step / per_epoch}
            row |= {"seconds": progress.seconds, "data_wait": waited / passed}
            row |= {"lr": lr}
            row |= {k: v for k, v in knobs.items() if k != "noise_seed"}
            row |= {"grad_norm": norm, **values}
            better = update_best(progress, family, row, plan)
            others = update_others(progress, family, row)
            progress.finished |= cycles_without_better(experiment, progress, per_epoch)
            progress.finished |= progress.step >= total
            with together(backend):
                if backend.rank == 0:
                    if better:
                        save_checkpoint(run, module, experiment, vocabulary)
                    for name in others:
                        kept = f"checkpoints/best_{name}"
                        save_checkpoint(run, module, experiment, vocabulary, kept)
                    history.append(run, row)
                    if told := warnings_of(family, history.read(run), plan.warmup_steps, progress):
                        watch.on_lines(told)
                    save_state(run, module, optimizer, progress)
                    watch.on_report(row)
            backend.report(row)
            waited = 0.0
    steps.close()
    return progress


def _steps(
    loader: Loader, backend: Backend, step: int, total: int
) -> Generator[list[Batch], None, None]:
    """Yield the micro-batches of step `step`, `step + 1`, ... over the epochs."""
    while step < total:
        epoch, start = divmod(step, loader.steps_per_epoch)
        for micro in loader.train_steps(epoch, start, backend.rank, backend.world):
            yield micro
            step += 1
