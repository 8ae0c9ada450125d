"""What `crossval` runs: the tasks it judges, the folds of the subjects, and a job of each model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.config.search import FIXED as SAME_IN_ALL
from ehr_ray.config.yaml_files import override
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.evaluation.tasks.baselines import TITLES
from ehr_ray.evaluation.tasks.stacking import STACKED
from ehr_ray.events.folds import folds_of
from ehr_ray.events.labels import check_binary, choose_task, is_among, tasks_of
from ehr_ray.events.patients import splits_of
from ehr_ray.events.schema import SPLITS
from ehr_ray.experiment import Experiment, dump, parse, with_absolute_paths
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.task_labels import task_labels
from ehr_ray.sources.dataset_check import subjects_of

MODEL: Final = "model"
"""The experiment as it is, among the names of variants."""
FIXED: Final[dict[str, Any]] = {
    "cluster.num_workers": 0,
    "tracking.experiment": None,
    "data.cache": "memory",
    "data.mode": "cache",
    "evaluation.bootstrap": 1,
    "evaluation.stack": None,
    "evaluation.hours": [],
    "evaluation.subgroups": {},
    "evaluation.umap_patients": 0,
}
"""Of every job: it trains in its own process and tells only what folds are compared by."""


@dataclass(frozen=True, eq=False)
class FoldJob:
    """A model of one fold, picklable."""

    name: str
    repeat: int
    fold: int
    member: int
    experiment: Experiment
    tasks: tuple[str, ...]
    """Label files it is judged by."""
    whole: bool
    """Whether it is judged on all patients besides, with a label or without."""
    subjects: NDArray[np.int64]
    """All of the cohort, ascending, [N]; the same array in each job, so that it travels once."""
    part: NDArray[np.int8]
    """The position of each one's split in `SPLITS`, [N]."""
    root: Path

    @property
    def splits(self) -> dict[str, NDArray[np.int64]]:
        """Return the subjects of the fold's train, tuning and held_out, ascending."""
        return {split: self.subjects[self.part == at] for at, split in enumerate(SPLITS)}

    @property
    def first(self) -> bool:
        """Whether it is the fold's first model, beside which the baselines are told."""
        return self.name == MODEL and self.member == 0

    @property
    def key(self) -> str:
        """Name of the job and of its files."""
        name = f"{self.name}-r{self.repeat}-f{self.fold}-m{self.member}"
        # Under the plain name an earlier version left what the network of an ensemble said alone.
        return f"{name}-e" if self.experiment.evaluation.ensemble and not self.first else name

    @property
    def folder(self) -> Path:
        """Where the files of all jobs lie."""
        return self.root / "jobs"

    @property
    def target(self) -> Path:
        """The file it leaves last: with it the job is done."""
        return self.folder / f"{self.key}.parquet"


def judged_tasks(experiment: Experiment, cohort: Path) -> tuple[str, ...]:
    """Return the label files that folds are judged by; see `crossval.tasks`."""
    there = tasks_of(cohort)
    if experiment.crossval.tasks:
        return tuple(str(choose_task(cohort, task)) for task in experiment.crossval.tasks)
    answers = get_family(experiment.family).evaluation.task_outputs
    own = [t for t in (answers(experiment.model) if answers else ()) if t in there]
    if own:
        return tuple(own)
    trained_for = experiment.task.name if experiment.task else None
    task = choose_task(cohort, experiment.evaluation.task or trained_for)
    if task is None:
        raise InputError(f"{cohort}: no labels, and folds are judged by one; ingest it with some")
    return (task,)


def variants(experiment: Experiment) -> dict[str, Experiment]:
    """Return the experiment as `model` and the chosen variants of it, by name."""
    known = experiment.crossval.variants
    found = {MODEL: experiment}
    for name in experiment.crossval.chosen:
        if name not in known or name == MODEL:
            there = ", ".join(n for n in known if n != MODEL) or "none"
            raise ConfigError(
                f"crossval.chosen (--variants) {name}: no such variant; crossval.variants of the "
                f"config has {there}"
            )
        if name in {*TITLES, STACKED}:
            raise ConfigError(
                f"crossval.variants.{name}: a row of the tables has this name; change it"
            )
        if fixed := [path for path in known[name] if path.startswith(SAME_IN_ALL)]:
            raise ConfigError(
                f"crossval.variants.{name}: {fixed[0]} must be the same in all folds; set it for "
                "the experiment"
            )
        try:
            changed = parse(override(dump(experiment), known[name]))
        except ConfigError as error:
            raise ConfigError(f"crossval.variants.{name}: {error}") from error
        if changed == experiment:
            raise ConfigError(f"crossval.variants.{name}: changes nothing of this experiment")
        found[name] = with_absolute_paths(changed)
    return found


def fold_jobs(experiment: Experiment, cohort: Path, root: Path) -> list[FoldJob]:
    """Return every job: the model's members and the variants, fold by fold."""
    plan, tasks = experiment.crossval, judged_tasks(experiment, cohort)
    whole = get_family(experiment.family).evaluation.task_outputs is not None
    ids, strata = subject_strata(cohort, tasks, experiment.cache)
    jobs = []
    for name, changed in variants(experiment).items():
        repeats = plan.repeats if name == MODEL else min(plan.repeats, plan.variant_repeats)
        members = plan.members if name == MODEL else 1
        for repeat in range(repeats):
            fold = folds_of(strata, plan.folds, experiment.seed * 1000 + repeat)
            for number in range(plan.folds):
                rest = fold != number
                for member in range(members):
                    inner = folds_of(
                        strata[rest],
                        round(1 / plan.tuning_share),
                        _seed(experiment, repeat, number, member),
                    )
                    part = np.full(len(ids), SPLITS.index("held_out"), np.int8)
                    part[rest] = np.where(inner > 0, SPLITS.index("train"), SPLITS.index("tuning"))
                    first = name == MODEL and member == 0
                    one = _of_a_job(changed, changed.seed + member, baselines=first)
                    jobs.append(
                        FoldJob(name, repeat, number, member, one, tasks, whole, ids, part, root)
                    )
    return jobs


def subject_strata(
    cohort: Path, tasks: Sequence[str], cache: Path
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return all subjects [N], ascending, and a number for each combination of their labels [N].

    Of a task a subject has no label, negative ones alone, or a positive one. The ids and labels of
    a shard are read at a time; `cache` is as `task_labels` takes it.
    """
    labels = [task_labels(cohort, task, cache, on_ray=False) for task in tasks]
    for each in labels:
        check_binary(each.task, each.kind, "crossval")
    subjects, strata = [], []
    for path in (path for paths in splits_of(cohort).values() for path in paths):
        own = subjects_of(path)
        number = np.zeros(len(own), np.int64)
        for each in labels:
            found = each.of(path)
            number *= 3
            number += is_among(own, found.subject_id)
            number += is_among(own, found.subject_id[found.value])
        subjects.append(own)
        strata.append(number)
    every = np.concatenate(subjects)
    order = np.argsort(every, kind="stable")
    return every[order], np.concatenate(strata)[order]


def _seed(experiment: Experiment, repeat: int, fold: int, member: int) -> int:
    return ((experiment.seed * 100 + repeat) * 100 + fold) * 100 + member


def _of_a_job(experiment: Experiment, seed: int, *, baselines: bool) -> Experiment:
    """Return the experiment of one job.

    Baselines are fitted beside a fold's first model alone, and where they are parts of an ensemble.
    """
    baselines = (baselines or experiment.evaluation.ensemble) and experiment.evaluation.baselines
    changes = {**FIXED, "name": "run", "seed": seed, "evaluation.baselines": baselines}
    return parse(override(dump(experiment), changes))
