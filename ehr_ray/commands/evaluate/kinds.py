"""`evaluate` of tasks whose labels are numbers or classes: what is judged, and what is written."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ehr_ray.commands.evaluate.predicted_rows import PredictedRows
from ehr_ray.commands.evaluate.predicted_splits import EvaluationInputs, split_of
from ehr_ray.commands.evaluate.report_content import Subject
from ehr_ray.errors import InputError
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.kinds import KindScores, fit_kind, kind_table, score_kind
from ehr_ray.evaluation.tasks.linear import LinearModel
from ehr_ray.evaluation.tasks.verdicts import MODEL
from ehr_ray.events.label_tasks import Kind
from ehr_ray.events.labels import read_labels
from ehr_ray.runtime.data.task_labels import TaskLabels
from ehr_ray.runtime.data.tasks import Say
from ehr_ray.storage import files
from ehr_ray.train.task_probe import TaskProbe

TITLE = "Beside the baselines"


def check_kind(
    subject: Subject,
    kind: Kind,
    recalibrate: float | None,
    explained: int,
    label_shares: Sequence[float],
) -> None:
    """Refuse labels of another kind than the run was trained for, and what other kinds lack."""
    task = subject.experiment.task
    if task is not None and task.name == subject.task and task.kind != kind:
        read_labels(subject.cohort, task.name).trained(task.kind, task.classes)  # says of which
    if kind == "binary":
        return
    asked = {
        f"--recalibrate {recalibrate}": recalibrate is not None,
        f"--explain {explained}": bool(explained),
        "--label-shares": bool(label_shares),
    }
    for name, given in asked.items():
        if given:
            raise InputError(
                f"{name}: reads binary labels, and those of {subject.task} are of the kind "
                f"{kind}; leave it out"
            )


def known_labels(subject: Subject, labels: TaskLabels) -> TaskLabels:
    """Return labels with the classes in the order of the run that was trained for them."""
    task = subject.experiment.task
    if task is None or task.name != subject.task:
        return labels
    return labels.trained(task.kind, task.classes)


def score_kinds(
    subject: Subject, labels: TaskLabels, inputs: EvaluationInputs, say: Say
) -> tuple[KindScores, SuiteResult]:
    """Fit model and baselines on the run's own train and tuning; score tuning and the split."""
    say("fitting the probe and the baselines")
    seed = subject.experiment.seed
    splits = {name: split_of(rows.sample) for name, rows in inputs.fit.items()}
    fitted = fit_kind(splits["train"], splits["tuning"], labels.kind, labels.classes, seed=seed)
    scored: dict[str, Iterable[Split]] = {"tuning": [splits["tuning"]]} if subject.own else {}
    scored |= {subject.split: map(split_of, inputs.judged.blocks())}
    say("scoring, with bootstrap intervals")
    scores = score_kind(
        fitted,
        scored,
        labels.kind,
        labels.classes,
        seed=seed,
        num_bootstrap=subject.experiment.evaluation.bootstrap,
    )
    return scores, SuiteResult(sections={TITLE: kind_table(scores, subject.split)})


def kind_probe(subject: Subject, scores: KindScores, probe: LinearModel) -> TaskProbe:
    """Return what makes the model's answers of its embedding."""
    return TaskProbe(str(subject.task), "embedding", "", probe, scores.kind, scores.classes)


def write_kind_predictions(
    folder: Path, scores: KindScores, written: Mapping[str, PredictedRows]
) -> None:
    """Write the model's to `<split>.parquet`, others' to `baselines/<name>/<split>.parquet`.

    A row is `subject_id`, `prediction_time` and, of a regression, `float_value` and
    `predicted_float_value`; of classes `categorical_value`, `predicted_categorical_value` and
    `probability/<class>` of each.
    """
    for split, by_name in scores.predicted.items():
        samples = written[split].rows.samples.select(["subject_id", "prediction_time"])
        for name, said in by_name.items():
            table = samples
            for column, values in _columns(scores, split, said).items():
                table = table.append_column(column, pa.array(values))
            destination = folder if name == MODEL else folder / "baselines" / name
            files.write_parquet(table, destination / f"{split}.parquet")


def _columns(scores: KindScores, split: str, said: Any) -> dict[str, Any]:
    label = scores.labels[split]
    if scores.kind == "regression":
        return {"float_value": label, "predicted_float_value": said}
    return {
        "categorical_value": [scores.classes[place] for place in label],
        "predicted_categorical_value": [scores.classes[place] for place in said.argmax(axis=1)],
        **{f"probability/{name}": said[:, k] for k, name in enumerate(scores.classes)},
    }
