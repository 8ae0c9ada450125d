"""The training loop, once for every family and every backend."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from ehr_ray.config import Experiment
from ehr_ray.errors import RunError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import AnyFamily, Batch, Knobs, Terms
from ehr_ray.train import history
from ehr_ray.train.backend import Backend, together
from ehr_ray.train.begin import begin_task
from ehr_ray.train.checkpoint import (
    Progress,
    load_state,
    save_checkpoint,
    save_state,
    saved_progress,
)
from ehr_ray.train.initialise import by_part, initialise
from ehr_ray.train.loader import Loader
from ehr_ray.train.optim import (
    drop_held,
    freeze,
    learning_rate,
    make_optimizer,
    set_lr,
    set_weight_decay,
    weight_decay,
)
from ehr_ray.train.selection import cycles_without_better, note, note_others
from ehr_ray.train.task import LABEL, ranking_metrics
from ehr_ray.train.usable import check_measured, check_usable

Metrics = dict[str, float]
MIX = 0x9E3779B97F4A7C15
"""The golden-ratio multiplier of splitmix64: spreads neighbouring steps over the seeds."""


@dataclass(frozen=True)
class Watch:
    """What the outside is told, on rank 0 only: each step's place, each report's metrics."""

    on_step: Callable[[int, int], None] = lambda _step, _total: None
    on_report: Callable[[Metrics], None] = lambda _metrics: None
    on_lines: Callable[[list[str]], None] = lambda _lines: None


def train(
    experiment: Experiment,
    family: AnyFamily,
    vocabulary: Vocabulary,
    loader: Loader,
    backend: Backend,
    run: Path,
    watch: Watch = Watch(),
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
    if (few := check_usable(family, experiment.model, loader)) and fresh and backend.rank == 0:
        watch.on_lines(few)
    if fresh and family.begin:
        everybody = loader.train.rows(range(len(loader.train)))
        family.begin(module, loader.collate(everybody))
    if family.outcome is not None:
        module.to(backend.device)
        first = loader.train_steps(0, 0, backend.rank, backend.world)
        batches = (move(batch, backend.device) for micro in first for batch in micro)
        idle = begin_task(family, module, batches, backend, fresh=fresh)
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
            better = note(progress, family, row, plan)
            others = note_others(progress, family, row)
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
                    if told := _warnings(family, history.read(run), plan.warmup_steps, progress):
                        watch.on_lines(told)
                    save_state(run, module, optimizer, progress)
                    watch.on_report(row)
            backend.report(row)
            waited = 0.0
    steps.close()
    return progress


def optimise(
    family: AnyFamily,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro: list[Batch],
    knobs: Knobs,
    experiment: Experiment,
    backend: Backend,
    sums: "Sums",
) -> float:
    """Take one optimizer step over micro-batches of every rank; return the gradient's norm."""
    plan = experiment.train
    optimizer.zero_grad(set_to_none=True)
    micro = [move(batch, backend.device) for batch in micro]
    counts, losses = None, []
    if len(micro) > 1:
        # Each term is divided by its count over the whole step, so counts come before gradients.
        # Forking the generator gives both passes the same draws, hence the same counts.
        with torch.no_grad(), torch.random.fork_rng():
            parts = [_terms(family, model, batch, knobs, plan.precision) for batch in micro]
        counts = torch.stack([_counts(terms) for terms in parts]).sum(0)
        counts = backend.all_sum(counts)
    for index, batch in enumerate(micro):
        last = index == len(micro) - 1
        no_sync = getattr(model, "no_sync", contextlib.nullcontext)
        with contextlib.nullcontext() if last else no_sync():
            terms = _terms(family, model, batch, knobs, plan.precision)
            if counts is None:
                counts = backend.all_sum(_counts(terms))
            objective(terms, counts, backend.world).backward()
        sums.add(terms)
        losses.append({name: term.sum.detach() for name, term in terms.items()})
    drop_held(optimizer)
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, plan.clip or float("inf"))
    if not torch.isfinite(norm):
        bad = {n: 0 for part in losses for n, v in part.items() if not v.isfinite()} or ["gradient"]
        raise RunError(
            f"{experiment.name}: {', '.join(bad)} is not finite with {_told(knobs)}; "
            "lower train.lr, or set train.clip"
        )
    optimizer.step()
    return float(norm)


def objective(terms: Terms, counts: Tensor, world: int) -> Tensor:
    """Return `world * sum_i coef_i * sum_i / count_i`: DDP's mean over ranks makes it exact."""
    parts = [
        term.coef * term.sum / count.clamp(min=1e-12)
        for term, count in zip(terms.values(), counts, strict=True)
        if term.coef
    ]
    return world * torch.stack(parts).sum()


@torch.no_grad()
def evaluate(
    family: AnyFamily, module: nn.Module, loader: Loader, backend: Backend, *, precision: str
) -> Metrics:
    """Return the mean of each term, and their weighted sum, over the tuning split.

    A family under a task head also gets `val/auroc`, `val/auprc` and `val/f1` of all its rows.
    """
    sums = Sums(backend)
    knobs = {**family.eval_knobs, "noise_seed": 0}
    was = module.training
    module.eval()
    measured: Mapping[str, float] = {}
    if family.diagnose is not None:
        chosen = (
            move(batch, backend.device) for batch in loader.fixed_batches(family.diagnose.patients)
        )
        with _cast(backend.device.type, precision):
            measured = family.diagnose.measure(module, chosen)
    scored = [torch.zeros(0, 2)]
    for batch in loader.tuning_batches(backend.rank, backend.world):
        batch = move(batch, backend.device)
        sums.add(_terms(family, module, batch, knobs, precision))
        if family.outcome is not None:
            logit = family.outcome(module, batch)
            scored.append(torch.stack([logit.float(), batch[LABEL].float()], 1).cpu())
    module.train(was)
    values = sums.means("val") | {f"val/{name}": value for name, value in measured.items()}
    if family.outcome is not None:
        rows = _gathered(torch.cat(scored), backend)
        values |= {f"val/{k}": v for k, v in ranking_metrics(rows[:, 0], rows[:, 1]).items()}
    return values


def _gathered(rows: Tensor, backend: Backend) -> Tensor:
    """Return the rows [N, F] of every rank, one rank after the other."""
    counts = torch.zeros(backend.world, dtype=torch.float64)
    counts[backend.rank] = len(rows)
    sizes = backend.all_sum(counts).long().cpu().tolist()
    everything = torch.zeros(sum(sizes), rows.shape[1], dtype=torch.float64)
    first = sum(sizes[: backend.rank])
    everything[first : first + len(rows)] = rows.double()
    return backend.all_sum(everything).cpu()


def summary(family: AnyFamily, values: Metrics) -> Metrics:
    """Return what the family makes of the means of its terms, for train and tuning alike."""
    if family.summarise is None:
        return {}
    found: Metrics = {}
    for prefix in ("train/", "val/"):
        means = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        found |= {f"{prefix}{name}": v for name, v in family.summarise(means).items()}
    return found


class Sums:
    """Running sums and counts of terms; means over all ranks and batches since the last call."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._values: dict[str, Tensor] = {}
        self._coef: dict[str, float] = {}

    def add(self, terms: Terms) -> None:
        """Count one batch."""
        for name, term in terms.items():
            value = torch.stack([term.sum.detach().double(), term.count.detach().double()])
            self._values[name] = value + self._values.get(name, 0)
            self._coef[name] = term.coef

    def means(self, prefix: str) -> Metrics:
        """Return `<prefix>/<term>` and `<prefix>/objective` (at the latest coefficients); reset.

        A term that nothing was counted for is NaN and no part of the objective: 0 would be best.
        """
        names = sorted(self._values)
        if not names:
            return {}
        totals = self._backend.all_sum(torch.stack([self._values[n] for n in names]))
        counted = {n: float(t[1]) > 0 for n, t in zip(names, totals, strict=True)}
        means = {
            n: float(t[0] / t[1]) if counted[n] else math.nan
            for n, t in zip(names, totals, strict=True)
        }
        parts = [self._coef[n] * means[n] for n in names if counted[n] and self._coef[n]]
        total = sum(parts) if parts else math.nan
        self._values = {}
        return {**{f"{prefix}/{n}": v for n, v in means.items()}, f"{prefix}/objective": total}


def knobs_at(experiment: Experiment, step: int, steps_per_epoch: int) -> dict[str, float]:
    """Return every schedule's value at a step, and the step's noise seed."""
    values = {n: s.at(step, steps_per_epoch) for n, s in experiment.schedules.items()}
    return {**values, "noise_seed": noise_seed(experiment.seed, step)}


def noise_seed(seed: int, step: int) -> int:
    """Return a 48-bit seed of a step's noise: the same on all ranks, never evaluation's (0)."""
    return ((seed * 0x100000001B3 + step + 1) * MIX % (1 << 64) >> 16) | 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for a step: ranks differ, and a resumed run repeats."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4096 + rank) * MIX % (1 << 63))


def move(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on a device."""
    if device.type == "cpu":
        return batch
    return {k: v.pin_memory().to(device, non_blocking=True) for k, v in batch.items()}


def _terms(
    family: AnyFamily, model: nn.Module, batch: Batch, knobs: Knobs, precision: str
) -> Terms:
    with _cast(next(iter(batch.values())).device.type, precision):
        return family.loss(model, batch, knobs)


def _cast(device: str, precision: str) -> torch.autocast:
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")


def _warnings(
    family: AnyFamily, reports: pd.DataFrame, warmup_steps: int, progress: Progress
) -> list[str]:
    """Return what the family says of the reports after warm-up; [] where there is nothing.

    A run that ends within warm-up is judged by its last report.
    """
    if family.diagnose is None:
        return []
    since = min(warmup_steps, progress.step - 1) if progress.finished else warmup_steps
    later = reports[reports["step"] > since].to_dict("records")
    told = [{str(k).removeprefix("val/"): v for k, v in row.items()} for row in later]
    return family.diagnose.warn(told)


def _told(knobs: Knobs) -> str:
    return ", ".join(f"{n} {v:.4g}" for n, v in knobs.items() if n != "noise_seed") or "no schedule"


def _counts(terms: Terms) -> Tensor:
    return torch.stack([term.count.detach().double() for term in terms.values()])


def _steps(
    loader: Loader, backend: Backend, step: int, total: int
) -> Generator[list[Batch], None, None]:
    """Yield the micro-batches of step `step`, `step + 1`, ... over the epochs."""
    while step < total:
        epoch, start = divmod(step, loader.steps_per_epoch)
        for micro in loader.train_steps(epoch, start, backend.rank, backend.world):
            yield micro
            step += 1
