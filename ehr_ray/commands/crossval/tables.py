"""What the jobs of `crossval` left, joined: scores of every fold, and the tables of their means."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import pandas as pd

from ehr_ray.commands.crossval.plan import MODEL, FoldJob
from ehr_ray.commands.evaluate.command import NO_TASK
from ehr_ray.commands.evaluate.report_content import positive_class
from ehr_ray.evaluation.markdown import escaped
from ehr_ray.evaluation.metrics.thresholds import best_f1_threshold
from ehr_ray.evaluation.report.write import write_predictions
from ehr_ray.evaluation.tasks.baselines import TITLES
from ehr_ray.evaluation.tasks.fold_scores import KEYS, fold_scores, markdown, paired, verdict
from ehr_ray.evaluation.tasks.stacking import STACKED, weights_line
from ehr_ray.evaluation.tasks.verdicts import NETWORK
from ehr_ray.experiment import Experiment

Weights = Mapping[str, Mapping[str, float]]
"""By task the weights of an ensemble's stacked parts."""
COMPARED: Final = ("auroc", "auprc", "c_index")
"""Metrics whose paired differences are told, as far as they were measured."""
_KEY: Final = re.compile(r"(?:baseline/(?P<model>[^/]+)/)?held_out/(?P<metric>[^/]+/.+)")
_DETAIL: Final = ("/low", "/high", "/undefined")


def joined_predictions(jobs: Sequence[FoldJob]) -> pd.DataFrame:
    """Return the test rows of all jobs, members averaged, with a threshold for each.

    It has the highest F1 on tuning rows, patients of the training part that a member was not
    trained on. Columns are those of `fold_scores` and `subject_id, prediction_time`.
    """
    every = pd.concat(
        [pd.read_parquet(job.target).assign(repeat=job.repeat, fold=job.fold) for job in jobs]
    )
    tuning = every[every["part"] == "tuning"].groupby(KEYS, sort=False)
    cut = {
        key: best_f1_threshold(part["label"].to_numpy(), part["probability"].to_numpy())
        for key, part in tuning
    }
    rows = every[every["part"] == "held_out"]
    grouped = rows.groupby([*KEYS, "subject_id", "prediction_time"], sort=False)
    test = grouped.agg(label=("label", "first"), probability=("probability", "mean")).reset_index()
    test["threshold"] = [cut[key] for key in test[KEYS].itertuples(index=False, name=None)]
    return test


def all_scores(jobs: Sequence[FoldJob], test: pd.DataFrame) -> pd.DataFrame:
    """Return `fold_scores` of the test rows beside the family's own measures, a column a metric.

    Those of several members are averaged; outcome "" is of all patients, whatever their label.
    """
    rows = [
        (model, outcome, job.repeat, job.fold, metric, value)
        for job in jobs
        for model, outcome, metric, value in measures(
            json.loads((job.folder / f"{job.key}.json").read_text()), job
        )
    ]
    scores = fold_scores(test)
    if not rows:
        return scores
    long = pd.DataFrame(rows, columns=[*KEYS, "metric", "value"])
    own = long.pivot_table(index=KEYS, columns="metric", values="value", sort=False)
    return scores.merge(own.reset_index(), on=KEYS, how="outer", sort=False)


def measures(
    metrics: Mapping[str, Mapping[str, float]], job: FoldJob
) -> Iterator[tuple[str, str, str, float]]:
    """Yield (model, outcome, metric, value) of what metrics.json has besides the comparison.

    Where the job was judged on all patients too, those values count: `survival/c_index` of them
    is the `c_index` of a task `survival`.
    """
    for task, found in metrics.items():
        if job.whole and task != NO_TASK:
            continue
        for key, value in found.items():
            match = _KEY.fullmatch(key)
            if match is None or key.endswith(_DETAIL) or (match["model"] and not job.first):
                continue
            first, _, rest = match["metric"].partition("/")
            if key.removesuffix(f"/{rest}") in found:  # tells more of a metric of the comparison
                continue
            model = match["model"] or job.name
            if first in job.tasks:
                if task in (first, NO_TASK):
                    yield model, first, rest, value
            else:
                yield model, "" if task == NO_TASK else task, match["metric"], value


def report(
    experiment: Experiment,
    jobs: Sequence[FoldJob],
    scores: pd.DataFrame,
    table: pd.DataFrame,
    weights: Weights = MappingProxyType({}),
) -> str:
    """Return crossval.md: a table an outcome, the verdict and the paired differences.

    `weights` are those that the parts of an ensemble have where they are stacked.
    """
    family = experiment.family
    titles = {**TITLES, STACKED: "Network, trees, regression, stacked", MODEL: family}
    variants, share = experiment.crossval.variants, 1 / experiment.crossval.folds
    models = list(dict.fromkeys(scores["model"]))
    alone = dict(titles)
    if NETWORK in models:  # what is judged is an ensemble, but of a task it was not trained for
        titles |= {MODEL: f"ensemble: {family}, trees, regression", NETWORK: f"{family} alone"}
    own = {MODEL, NETWORK, STACKED, *variants}
    baselines = [name for name in models if name not in own]
    lines = []
    if experiment.init_from:
        lines += [f"note: {escaped(caution(experiment))}", ""]
    for task in jobs[0].tasks:
        positive = positive_class(experiment.cohort, task)
        heading = f"**{escaped(task)}**" + (f", {escaped(positive)}" if positive else "")
        judged = titles if NETWORK in set(scores.loc[scores["outcome"] == task, "model"]) else alone
        lines += [markdown(table, task, heading, judged), ""]
        if said := verdict(scores, MODEL, baselines, task, share):
            lines += [said, ""]
        lines += [*_differences(scores, models, task, share), ""]
        if task in weights:
            lines += [_stack_line(weights[task]), ""]
    if (table["outcome"] == "").any():
        lines += [markdown(table, "", "**All patients**, with a label or without", titles), ""]
    return "\n".join(lines)


def _stack_line(weights: Mapping[str, float]) -> str:
    return (
        "Stacked on what each part said of unseen patients (logistic regression on their logits, "
        "weights not negative), each fold by the weights of the others. Those of all folds, for "
        f"other patients: `evaluation.stack='{weights_line(weights)}'`"
    )


def caution(experiment: Experiment) -> str:
    """Return what a reader must know of folds whose models start from given weights."""
    return (
        f"every model starts from {experiment.init_from}; where that was trained on patients of "
        "this cohort, it has seen the inputs of the test patients"
    )


def _differences(
    scores: pd.DataFrame, models: Sequence[str], task: str, share: float
) -> Iterator[str]:
    """Yield a line for each other model: the experiment minus it, on the folds of both."""
    there = scores[scores["outcome"] == task]
    for other in models:
        told = []
        for metric in COMPARED:
            if metric not in there or there.loc[there["model"] == other, metric].isna().all():
                continue
            told.append(f"{metric} {paired(scores, MODEL, other, task, metric, share)}")
        if other != MODEL and told:
            yield f"- {MODEL} - {escaped(other)}: {', '.join(told)}"


def record(
    experiment: Experiment,
    jobs: Sequence[FoldJob],
    table: pd.DataFrame,
    weights: Weights = MappingProxyType({}),
) -> dict[str, Any]:
    """Return crossval.json; `weights` are those of `report`."""
    plan = experiment.crossval
    return {
        "seed": experiment.seed,
        "folds": plan.folds,
        "repeats": plan.repeats,
        "members": plan.members,
        "positive": {task: positive_class(experiment.cohort, task) for task in jobs[0].tasks},
        **({"stack": dict(weights)} if weights else {}),
        "variants": {name: plan.variants[name] for name in plan.chosen},
        "means": table.astype(object).where(table.notna(), None).to_dict("records"),
    }


def write_fold_predictions(folder: Path, test: pd.DataFrame, cohort: Path) -> None:
    """Write the model's own as `<task>/r<repeat>-f<fold>.parquet`, in place of all such files.

    Beside them lies what `evaluate` has written of a run of the same name.
    """
    for former in folder.glob("*/r[0-9]*-f[0-9]*.parquet"):
        former.unlink()
    own = test[test["model"] == MODEL]
    key: Any  # pandas types it as Hashable
    for key, part in own.groupby(["outcome", "repeat", "fold"]):
        task, repeat, fold = key
        write_predictions(
            folder / task / f"r{repeat}-f{fold}.parquet",
            part["subject_id"].to_numpy(),
            part["prediction_time"].to_numpy(),
            part["label"].to_numpy(),
            part["probability"].to_numpy(),
            positive_class(cohort, task),
            float(part["threshold"].iloc[0]),
        )


def tracked_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Return the means and standard deviations as flat metrics: `mortality/model/auroc/mean`."""
    return {
        f"{outcome or 'all'}/{model}/{metric}/{kind}": float(value)
        for kind in ("mean", "std")
        for outcome, model, metric, value in zip(
            table["outcome"], table["model"], table["metric"], table[kind], strict=True
        )
        if np.isfinite(value)
    }
