"""The reports of a run: what is measured, kept on disk and told, every `train.report_steps`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.family import AnyFamily, Batch
from ehr_ray.train import history
from ehr_ray.train.backend import Backend, together
from ehr_ray.train.checkpoint import Progress, moments_of, save_checkpoint, save_state
from ehr_ray.train.data_checks import check_measured
from ehr_ray.train.loader import Loader
from ehr_ray.train.meters import Metrics, Sums
from ehr_ray.train.selection import cycles_without_better, update_best, update_others
from ehr_ray.train.sharding import gathered, whole
from ehr_ray.train.validate import summarised, validate


@dataclass(frozen=True)
class Watch:
    """Whom a run tells, on rank 0 only: each step of how many, each report's row, and lines."""

    on_step: Callable[[int, int], None] = lambda _step, _total: None
    on_report: Callable[[Metrics], None] = lambda _metrics: None
    on_lines: Callable[[list[str]], None] = lambda _lines: None


SILENT = Watch()


@dataclass(frozen=True, eq=False)
class Run:
    """What a run is made of and does not change while it trains; `folder` is its directory."""

    experiment: Experiment
    family: AnyFamily
    vocabulary: Vocabulary
    loader: Loader
    backend: Backend
    folder: Path
    watch: Watch

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole plan."""
        plan = self.experiment.train
        steps = plan.max_epochs * self.loader.steps_per_epoch
        return min(steps, plan.max_steps or steps)

    @property
    def report_steps(self) -> int:
        """Steps from one report to the next: an epoch's unless the plan says otherwise."""
        return self.experiment.train.report_steps or self.loader.steps_per_epoch

    def tell(self, lines: list[str]) -> None:
        """Tell lines, once for all ranks."""
        if self.backend.rank == 0:
            self.watch.on_lines(lines)


class Reporter:
    """Measures, keeps and tells; every rank takes part in each call."""

    def __init__(
        self,
        run: Run,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        progress: Progress,
        sums: Sums,
    ) -> None:
        self._run, self._module, self._optimizer = run, module, optimizer
        self._progress, self._sums = progress, sums
        self._last = time.perf_counter()
        self._waited = 0.0

    def waited_for(self, batches: Iterator[list[Batch]]) -> list[Batch]:
        """Return the next step's micro-batches, and count the seconds they took to come."""
        asked = time.perf_counter()
        micro = next(batches)
        self._waited += time.perf_counter() - asked
        return micro

    def keep_checkpoint(self) -> None:
        """Keep the model of this step as `checkpoints/<step>`, whatever it is worth."""
        with whole(self._module) as model, together(self._run.backend):
            if self._run.backend.rank == 0:
                self._save(model, f"checkpoints/{self._progress.step:08d}")

    def report(self, settings: Metrics) -> None:
        """Measure the model, judge it, keep what is worth keeping and tell of it.

        `settings` are the learning rate, the scheduled values and the gradient's norm of the last
        step; they are part of the row.
        """
        with whole(self._module) as model:
            row = self._judged_and_kept(model, settings)
            self._run.backend.report(row)  # a search measures the model besides

    def _judged_and_kept(self, model: nn.Module, settings: Metrics) -> Metrics:
        run, progress, plan = self._run, self._progress, self._run.experiment.train
        values = self._measured(model)
        row = self._row(settings, values)
        better = update_best(progress, run.family, row, plan)
        extra = run.family.files.extra_checkpoints
        others = extra(run.experiment.model) if extra else {}
        better_by = update_others(progress, others, row)
        per_epoch = run.loader.steps_per_epoch
        progress.finished |= cycles_without_better(run.experiment, progress, per_epoch)
        progress.finished |= progress.step >= run.total_steps
        first = run.backend.rank == 0
        moments = gathered(moments_of(self._optimizer), keep=first)
        with together(run.backend):
            if first:
                if better:
                    self._save(model, "checkpoint")
                for name in better_by:
                    self._save(model, f"checkpoints/best_{name}")
                if others and progress.finished:
                    self._save(model, "checkpoints/final")
                history.append(run.folder, row)
                warmup = plan.warmup(per_epoch)
                if lines := warnings_of(run.family, history.read(run.folder), warmup, progress):
                    run.tell(lines)
                # Last of all: a run killed before it repeats this report, row and checkpoints.
                save_state(run.folder, model, moments, progress)
                run.watch.on_report(row)
        return row

    def _measured(self, model: nn.Module) -> Metrics:
        """Return means of train since the last report, those of tuning, and what sums them up."""
        run = self._run
        values = self._sums.means("train")
        values |= validate(
            run.family,
            model,
            run.loader,
            run.backend,
            precision=run.experiment.train.precision,
        )
        values |= summarised(run.family, values)
        check_measured(run.family, values, run.loader, self._progress.best)
        return values

    def _row(self, settings: Metrics, values: Metrics) -> Metrics:
        """Return the row of `history.parquet`, and start the clocks of the next one."""
        progress, now = self._progress, time.perf_counter()
        passed, self._last = now - self._last, now
        progress.seconds += passed
        row: Metrics = {
            "step": progress.step,
            "epoch": progress.step / self._run.loader.steps_per_epoch,
            "seconds": progress.seconds,
            "data_wait": self._waited / passed,
        }
        self._waited = 0.0
        return row | settings | values

    def _save(self, model: nn.Module, name: str) -> None:
        run = self._run
        save_checkpoint(run.folder, model, run.experiment, run.vocabulary, name)


def warnings_of(
    family: AnyFamily, reports: pd.DataFrame, warmup_steps: int, progress: Progress
) -> list[str]:
    """Return what the family says of the reports after warm-up; [] where there is nothing.

    A run that ends within warm-up is judged by its last report.
    """
    diagnose = family.training.diagnose
    if diagnose is None:
        return []
    since = min(warmup_steps, progress.step - 1) if progress.finished else warmup_steps
    later = reports[reports["step"] > since].to_dict("records")
    return diagnose.warn(
        [{str(k).removeprefix("val/"): v for k, v in row.items()} for row in later]
    )
