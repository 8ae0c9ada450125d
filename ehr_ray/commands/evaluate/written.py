"""What an evaluation leaves: metrics, predictions, embeddings, figures, the report."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ehr_ray.commands.evaluate.kinds import kind_probe, write_kind_predictions
from ehr_ray.commands.evaluate.predicted_rows import PredictedRows
from ehr_ray.commands.evaluate.predicted_splits import (
    EvaluationInputs,
    suites_result,
    task_probe,
)
from ehr_ray.commands.evaluate.report_content import (
    Subject,
    positive_class,
    report_context,
    summary,
)
from ehr_ray.evaluation.metrics.collapse import (
    LatentDiagnostics,
    embedding_diagnostics,
    latent_diagnostics,
)
from ehr_ray.evaluation.metrics.reconstruction import Tokens, reconstruction_metrics
from ehr_ray.evaluation.report.write import (
    write_metrics,
    write_predictions,
    write_report,
    write_results,
)
from ehr_ray.evaluation.suite import SuiteResult, merged
from ehr_ray.evaluation.tasks.downstream import TaskScores
from ehr_ray.evaluation.tasks.kinds import KindScores
from ehr_ray.evaluation.tasks.verdicts import MODEL
from ehr_ray.runtime.data.tasks import Say
from ehr_ray.runtime.inference.embeddings import EMBEDDINGS
from ehr_ray.runtime.tracking import Tracker, find_run
from ehr_ray.runtime.verb_tracking import VerbRecord
from ehr_ray.storage import files
from ehr_ray.train import checkpoint
from ehr_ray.train.prediction_tables import matrix
from ehr_ray.train.task_probe import FOLDER as PROBES
from ehr_ray.train.task_probe import TaskProbe, save_task_probe

ARTIFACTS = (
    "metrics.json",
    "predictions",
    "embeddings",
    PROBES,
    "figures",
    "report.html",
    "results.md",
    "results.csv",
)


def write_evaluation(
    subject: Subject,
    scores: TaskScores | KindScores | None,
    task: SuiteResult,
    inputs: EvaluationInputs,
    record: VerbRecord,
    say: Say,
    pages: bool,
) -> list[str]:
    """Write metrics, predictions, embeddings and, with `pages`, figures and the report.

    Returns the summary.
    """
    say("writing the results")
    target, split = subject.target, subject.split
    metrics = dict(scores.metrics) if scores else {}
    judged = inputs.judged.sample
    latent: LatentDiagnostics | None = None
    if "latents" in judged.tables:
        posterior = judged.tables["latents"]
        latent = latent_diagnostics(
            matrix(posterior, "mu"), matrix(posterior, "logvar"), posterior["sample"].to_numpy()
        )
        metrics |= {f"{split}/latent/{k}": v for k, v in latent.metrics().items()}
    embedding = embedding_diagnostics(matrix(judged.samples, "embedding"))
    metrics |= {f"{split}/embedding/{k}": v for k, v in embedding.metrics().items()}
    tokens = None
    if "tokens" in judged.tables:
        table = judged.tables["tokens"]
        tokens = Tokens.from_columns(
            {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        )
        measured = reconstruction_metrics(tokens)
        metrics |= {f"{split}/reconstruction/{k}": v for k, v in measured.items()}
    target.mkdir(parents=True, exist_ok=True)
    binary = not isinstance(scores, KindScores)
    read = (subject, inputs) if binary else _unlabelled(subject, inputs)
    found = merged([task, _sampled(inputs.judged, split), suites_result(*read, say)])
    metrics |= found.metrics
    notes = write_metrics(target / "metrics.json", metrics)
    written = inputs.written(subject)
    for name, one in written.items():
        embedded = (block.samples for block in one.blocks(EMBEDDINGS.names))
        files.write_parquet_pieces(embedded, EMBEDDINGS, target / "embeddings" / f"{name}.parquet")
    if scores is not None:
        _write_answers(subject, scores, written, found)
    report = None
    if pages:
        context = report_context(subject, scores, judged, metrics, latent, embedding, tokens, found)
        write_results(target, context)
        report = write_report(target, context)
    record.metrics |= metrics
    record.artifacts.append((target, (*ARTIFACTS, *found.artifacts)))
    if subject.own and (left := _tell_training(subject.run, record)):
        notes = [*notes, f"{left}; evaluate again to tell it"]
    return summary(subject, scores, latent, metrics, report, notes, found)


def _sampled(judged: PredictedRows, split: str) -> SuiteResult:
    """Note of how many rows what is not scores is, where that is not of all."""
    if judged.whole:
        return SuiteResult()
    some, all_rows = len(judged.sample.samples), len(judged.rows.samples)
    return SuiteResult(
        notes=(
            f"{some:,} of {all_rows:,} rows of {split} (evaluation.fit_patients) are in the "
            "diagnostics and map of the embedding, drift, few labels and what the family measures",
        )
    )


def _tell_training(run: Path, record: VerbRecord) -> str:
    """Tell the training's MLflow run; return "" or a line on what it did not take."""
    tracked = find_run(run)
    if tracked is not None and not tracked.run_id:
        return "MLflow has no run of this training, which its own command makes once it answers"
    tracker, last = Tracker(tracked), checkpoint.saved_progress(run)
    finite = {k: v for k, v in record.metrics.items() if np.isfinite(v)}
    tracker.metrics(finite, last.step if last else 0)
    for folder, names in record.artifacts:
        tracker.artifacts(folder, names)
    return tracker.flush()


def _write_answers(
    subject: Subject,
    scores: TaskScores | KindScores,
    written: Mapping[str, PredictedRows],
    found: SuiteResult,
) -> None:
    """Write the predictions of a task and, of the run's own cohort, the probe that made them."""
    folder = subject.target / "predictions"
    if isinstance(scores, KindScores):
        write_kind_predictions(folder, scores, written)
        if subject.own and scores.probe is not None:
            _keep_probe(subject, kind_probe(subject, scores, scores.probe))
    else:
        positive = positive_class(subject.cohort, subject.task)
        _write_predictions(folder, scores, written, positive, found)
        if subject.own:
            _keep_probe(subject, task_probe(subject, scores, positive))


def _write_predictions(
    folder: Path,
    scores: TaskScores,
    written: Mapping[str, PredictedRows],
    positive: str,
    found: SuiteResult,
) -> None:
    """Write the model's to `<split>.parquet`, others' to `baselines/<name>/<split>.parquet`."""
    for split, by_name in scores.probabilities.items():
        own = {name: rows[split] for name, rows in found.predictions.items() if split in rows}
        for name, probability in {**by_name, **own}.items():
            # What a suite says is of the rows it was given.
            of = written[split].sample if name in own else written[split].rows
            assert of.label is not None
            destination = folder if name == MODEL else folder / "baselines" / name
            write_predictions(
                destination / f"{split}.parquet",
                of.samples["subject_id"].to_numpy(),
                of.samples["prediction_time"].to_numpy(),
                of.label,
                probability,
                positive,
                scores.thresholds.get(name),
            )


def _keep_probe(subject: Subject, found: TaskProbe) -> None:
    """Write what made the model's answers, for `ehr_ray.load(...).predict`."""
    weights = checkpoint.checkpoint_folder(subject.run) / checkpoint.WEIGHTS
    save_task_probe(subject.target, found, weights)


def _unlabelled(subject: Subject, inputs: EvaluationInputs) -> tuple[Subject, EvaluationInputs]:
    """Return both without a task: a family's suites read binary labels alone."""

    def without(one: PredictedRows) -> PredictedRows:
        return dataclasses.replace(one, sample=dataclasses.replace(one.sample, label=None))

    fit = {name: without(one) for name, one in inputs.fit.items()}
    return dataclasses.replace(subject, task=None), EvaluationInputs(fit, without(inputs.judged))
