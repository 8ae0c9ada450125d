"""`crossval`: repeated stratified folds as parallel Ray tasks, beside baselines and ablations.

Of each (variant, repeat, fold, member) one task makes the fold's cohort, trains on it in its own
process, and writes what the model says of the fold's test and tuning patients. Baselines are a task
a fold. A task whose file is there is not run again.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from ehr_ray.commands.crossval.fold import BASELINES, MODEL, FoldJob, run_fold
from ehr_ray.config.yaml_files import override
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.evaluation.metrics.thresholds import best_f1_threshold
from ehr_ray.evaluation.report.write import write_predictions
from ehr_ray.evaluation.tasks.fold_scores import (
    METRICS,
    fold_scores,
    markdown,
    paired,
    spread,
    verdict,
)
from ehr_ray.events.auroc import auroc
from ehr_ray.events.folds import folds_of, read_events
from ehr_ray.events.modalities import MODALITIES
from ehr_ray.events.outcomes import UNKNOWN
from ehr_ray.experiment import Experiment, changes_since, dump, parse, to_yaml, with_absolute_paths
from ehr_ray.families.hcat.config import PRESETS
from ehr_ray.families.hcat.outcome_baselines import LOGISTIC, TITLES
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.dataset import check_cohort
from ehr_ray.runtime.data.tasks import Say, run_jobs
from ehr_ray.runtime.session import session
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import is_uri

VARIANTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "no_imputer": {"model.missing": "mask"},
    "no_gate": {"model.gate": False},
    "no_contrastive": {"model.alpha_con": 0.0},
    "contrastive": {"model.alpha_con": 0.1},
    "no_linear": {"model.linear": False},
    **{f"only_{name}": {"only": name} for name in MODALITIES},
    **{f"size_{name}": {"model.preset": name} for name in PRESETS},
}
"""Ablations by name: what of the config each changes."""
TUNING_SHARE: Final = 0.15
"""Share of a fold's training part that stops training; another one for each member."""


@dataclass(frozen=True)
class Plan:
    """How a cohort is divided and what is trained on it."""

    folds: int = 5
    repeats: int = 2
    members: int = 1
    variants: tuple[str, ...] = ()
    variant_repeats: int = 1


def crossval(
    experiment: Experiment,
    plan: Plan,
    *,
    cpus: int | None = None,
    verbose: bool = False,
    say: Say = lambda _: None,
) -> list[str]:
    """Cross-validate an experiment; return what a person should read.

    `<output>/<name>/` gets `crossval.md`, `folds.csv` with every score of every fold, and
    `predictions/<outcome>/r<repeat>-f<fold>.parquet` of the test patients.
    """
    family = get_family(experiment.family)
    if family.evaluation.task_outputs is None:
        raise ConfigError(
            f"family: {family.name} answers no task by itself, and crossval needs one that does"
        )
    if plan.folds < 2:
        raise ConfigError(f"--folds {plan.folds}: must be at least 2")
    for name in plan.variants:
        if name not in VARIANTS:
            raise ConfigError(f"--variants {name}: choose from {', '.join(VARIANTS)}")
    if is_uri(experiment.output):
        raise ConfigError(f"output={experiment.output}: crossval writes to folders; give a path")
    experiment = with_absolute_paths(experiment)
    cohort = sync.fetch(experiment.data.cohort)
    if not cohort.is_dir():
        raise InputError(f"data.cohort={cohort}: no such folder; make it with `ehr-ray ingest`")
    check_cohort(cohort, experiment.cache, say)
    experiment = replace(experiment, data=replace(experiment.data, cohort=str(cohort)))
    root = experiment.directory
    jobs = _jobs(experiment, plan, root, cohort, say)
    claim(root, experiment, plan)
    waiting = [job for job in jobs if not job.target.is_file()]
    say(f"{len(jobs)} fold jobs, {len(jobs) - len(waiting)} of them done before")
    if waiting:
        with session(experiment.cluster.address, cpus, verbose):
            run_jobs(
                partial(run_fold, events=read_events(cohort)),
                waiting,
                on_ray=True,
                say=say,
                verb="folds done:",
                label=lambda job: job.key,
                num_cpus=experiment.cluster.cpus_per_worker,
            )
    return _report(experiment, plan, jobs, root)


def claim(root: Path, experiment: Experiment, plan: Plan) -> None:
    """Write what is run into the folder, or refuse one that holds another experiment."""
    folds = f"# folds: {plan.folds}\n"  # the rest may grow
    text, path = to_yaml(experiment) + folds, root / "crossval.yaml"
    if path.is_file() and (
        not path.read_text().endswith(folds)
        or not all(change.startswith("output: ") for change in changes_since(path, experiment))
    ):
        raise ConfigError(f"{root}: holds another cross-validation; choose another name")
    files.write_text(path, text)


def _jobs(experiment: Experiment, plan: Plan, root: Path, cohort: Path, say: Say) -> list[FoldJob]:
    """Return every task: the model's members, the variants' and the baselines, fold by fold."""
    say("dividing subjects")
    ids, strata = _strata(experiment, cohort)
    jobs = []
    for repeat in range(plan.repeats):
        fold = folds_of(strata, plan.folds, experiment.seed * 1000 + repeat)
        for number in range(plan.folds):
            test, rest = ids[fold == number], fold != number
            names = [(MODEL, m) for m in range(plan.members)] + [(BASELINES, 0)]
            if repeat < plan.variant_repeats:
                names += [(variant, 0) for variant in plan.variants]
            for name, member in names:
                inner = folds_of(
                    strata[rest], round(1 / TUNING_SHARE), _seed(experiment, repeat, number, member)
                )
                splits = {
                    "train": ids[rest][inner > 0].tolist(),
                    "tuning": ids[rest][inner == 0].tolist(),
                    "held_out": test.tolist(),
                }
                changes = dict(VARIANTS.get(name, {}))
                key = f"r{repeat}-f{number}-m{member}"
                one = _varied(experiment, changes, f"{name}-{key}", root, member)
                jobs.append(FoldJob(name, repeat, number, member, one, cohort, splits, root))
    return jobs


def _seed(experiment: Experiment, repeat: int, fold: int, member: int) -> int:
    return ((experiment.seed * 100 + repeat) * 100 + fold) * 100 + member


def _varied(
    experiment: Experiment, changes: dict[str, Any], name: str, root: Path, member: int
) -> Experiment:
    """Return the experiment of one task, which trains in its own process, untracked."""
    only = changes.pop("only", None)
    if only is not None:
        changes["model.codes"] = {only: list(experiment.model.codes[only])}
        changes["model.linear_modalities"] = [only]
    fixed = {
        "name": name,
        "output": str(root / "jobs"),
        "seed": experiment.seed + member,
        "cluster.num_workers": 0,
        "tracking.experiment": None,
        "data.cache": "memory",
    }
    return parse(override(dump(experiment), {**changes, **fixed}))


def _strata(experiment: Experiment, cohort: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return all subjects and a number for each combination of labels, of those that have any."""
    subjects = np.unique(
        np.concatenate(
            [
                files.read_parquet(path, ["subject_id"])["subject_id"].to_numpy()
                for path in sorted((cohort / "data").rglob("*.parquet"))
            ]
        )
    )
    strata = np.zeros(len(subjects), np.int64)
    for outcome in experiment.model.outcomes:
        path = cohort / "labels" / f"{outcome.name}.parquet"
        if not path.is_file():
            continue
        table = files.read_parquet(path)
        given = dict(
            zip(table["subject_id"].to_pylist(), table["boolean_value"].to_pylist(), strict=True)
        )
        answer = [int(given[s]) if s in given else UNKNOWN for s in subjects.tolist()]
        strata = strata * 3 + np.array(answer) + 1
    return subjects, strata


def _report(experiment: Experiment, plan: Plan, jobs: Sequence[FoldJob], root: Path) -> list[str]:
    """Join what the tasks wrote, score it and write the tables; return them as lines."""
    outcomes = experiment.model.outcomes
    every = pd.concat([pd.read_parquet(job.target).assign(**job.fold_columns) for job in jobs])
    test, inner = _judged(every, [o.name for o in outcomes])
    positive = {o.name: o.positive == "event" for o in outcomes}
    test["positive_is_event"] = test["outcome"].map(positive)
    scores = fold_scores(test)
    files.write_text(root / "folds.csv", scores.to_csv(index=False))
    files.write_text(root / "inner.csv", inner.to_csv(index=False))
    meaning = {o.name: o.describes for o in outcomes}
    _write_predictions(root / "predictions", test, Path(experiment.data.cohort), meaning)
    table = spread(scores)
    lines, share = [], 1 / plan.folds
    titles = {**TITLES, MODEL: "HCAT" if experiment.family == "hcat" else experiment.family}
    baselines = [name for name in TITLES if name in set(scores["model"])]
    for outcome in outcomes:
        lines += [markdown(table, outcome.name, f"positive: {outcome.describes}", titles), ""]
        said = verdict(scores, MODEL, baselines, outcome.name, share)
        gaps = [
            f"- {MODEL} - {other}: "
            + ", ".join(
                f"{metric} {paired(scores, MODEL, other, outcome.name, metric, share)}"
                for metric in ("auroc", "auprc", "c_index")
            )
            for other in dict.fromkeys(scores["model"])
            if other != MODEL
        ]
        lines += [said, "", *gaps, ""]
    text = "\n".join(lines)
    files.write_text(root / "crossval.md", text)
    record = {
        "seed": experiment.seed,
        "folds": plan.folds,
        "repeats": plan.repeats,
        "members": plan.members,
        "positive": {o.name: o.describes for o in outcomes},
        "metrics": list(METRICS),
        "reference": LOGISTIC,
        "means": table.to_dict("records"),
    }
    files.write_text(root / "crossval.json", json.dumps(record, indent=1) + "\n")
    return [*text.splitlines(), f"{root}: crossval.md, folds.csv, predictions/"]


def _judged(every: pd.DataFrame, outcomes: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return test rows, members averaged, with thresholds; and each model's loss on inner tuning.

    Thresholds have the highest F1 on patients of the training part that a member was not trained
    on; so do the scores by which settings may be chosen.
    """
    keys = ["model", "outcome", "repeat", "fold"]
    rows = every[every["outcome"].isin(outcomes)].copy()
    tuning = rows[(rows["part"] == "tuning") & (rows["label"] >= 0)]
    cut, inner = {}, []
    for key, part in tuning.groupby(keys, sort=False):
        y, p = part["label"].to_numpy(), part["probability"].to_numpy().clip(1e-6, 1 - 1e-6)
        cut[key] = best_f1_threshold(y, p)
        nll = float(-np.where(y > 0, np.log(p), np.log(1 - p)).mean())
        inner.append({**dict(zip(keys, key, strict=True)), "nll": nll, "auroc": auroc(y > 0, p)})
    test = rows[rows["part"] == "test"]
    mean = (
        test.groupby([*keys, "subject_id"], sort=False)
        .agg(
            label=("label", "first"),
            days=("days", "first"),
            state=("state", "first"),
            weight=("weight", "first"),
            probability=("probability", "mean"),
        )
        .reset_index()
    )
    places = list(mean[keys].itertuples(index=False, name=None))
    # A model judged with modalities taken away keeps the threshold of the whole.
    mean["threshold"] = [cut.get(p, cut.get((p[0].split("@")[0], *p[1:]), 0.5)) for p in places]
    return mean, pd.DataFrame(inner)


def _write_predictions(
    folder: Path, test: pd.DataFrame, cohort: Path, positive: Mapping[str, str]
) -> None:
    """Write the model's own, of patients with a label in the cohort's label files."""
    shutil.rmtree(folder, ignore_errors=True)
    own = test[(test["model"] == MODEL) & (test["label"] >= 0)]
    for (outcome, repeat, fold), part in own.groupby(["outcome", "repeat", "fold"]):
        path = cohort / "labels" / f"{outcome}.parquet"
        if not path.is_file():
            continue
        labels = files.read_parquet(path, ["subject_id", "prediction_time"]).to_pandas()
        part = part.merge(labels, on="subject_id")
        write_predictions(
            folder / outcome / f"r{repeat}-f{fold}.parquet",
            part["subject_id"].to_numpy(),
            part["prediction_time"].to_numpy(),
            part["label"].to_numpy() > 0,
            part["probability"].to_numpy(),
            positive[outcome],
        )
