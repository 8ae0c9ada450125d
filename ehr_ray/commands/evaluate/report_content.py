"""What the report of an evaluation shows, gathered from the run, the cohort and the scores."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ehr_ray.evaluation.metrics.collapse import EmbeddingDiagnostics, LatentDiagnostics
from ehr_ray.evaluation.metrics.reconstruction import Tokens, examples, reconstruction_table
from ehr_ray.evaluation.report import figures
from ehr_ray.evaluation.report.content import Rejected, ReportContext, SplitSize
from ehr_ray.evaluation.report.embedding_map import embedding_map
from ehr_ray.evaluation.report.tables import SEEN
from ehr_ray.evaluation.suite import SplitPredictions, SuiteResult
from ehr_ray.evaluation.tasks.baselines import TITLES, title_of
from ehr_ray.evaluation.tasks.downstream import TaskScores
from ehr_ray.evaluation.tasks.kinds import HEADS, METRICS, KindScores, kind_title
from ehr_ray.evaluation.tasks.verdicts import MODEL, metric_prefix
from ehr_ray.events.patient_features import FeatureCodes
from ehr_ray.events.patients import splits_of
from ehr_ray.events.scaling import CENTRES
from ehr_ray.events.subgroups import Subgroup
from ehr_ray.experiment import Experiment, to_yaml
from ehr_ray.runtime.data.manifest import opened
from ehr_ray.runtime.data.task_labels import TaskLabels, task_labels
from ehr_ray.runtime.training.ranking import UNTRAINED_STEPS
from ehr_ray.sources.building.changes import told
from ehr_ray.sources.building.cohort import TASKS
from ehr_ray.sources.parsing.quarantine import masked
from ehr_ray.storage import files, in_place
from ehr_ray.storage.paths import canonical, uri_of
from ehr_ray.train import checkpoint, history
from ehr_ray.train.prediction_tables import matrix


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a run on a cohort, a task, a split; and where the results go."""

    run: Path
    loaded: checkpoint.Loaded
    cohort: Path
    own: bool
    split: str
    task: str | None
    target: Path
    on_ray: bool = True
    gpus: float = 0.0
    """GPUs of each process that predicts."""
    features: FeatureCodes | None = None
    """What baselines read; None without baselines."""
    mapped: Path | None = None
    """A copy of the cohort with the codes of the run's, where a code map was given."""
    subgroups: Mapping[str, Subgroup] = field(default_factory=dict)
    """Ways to divide the judged patients."""

    @property
    def experiment(self) -> Experiment:
        """The run's experiment."""
        return self.loaded.experiment

    @property
    def events(self) -> Path:
        """The cohort whose events are read."""
        return self.mapped or self.cohort

    def cache_of(self, cohort: Path) -> Path:
        """Return where what is counted of a cohort is kept: of a mapped copy it goes with it."""
        return cohort if cohort == self.mapped else self.experiment.cache

    def labels_of(self, cohort: Path) -> TaskLabels:
        """Return the labels of the task in a cohort."""
        assert self.task is not None
        return task_labels(cohort, self.task, self.cache_of(cohort), on_ray=self.on_ray)


def positive_class(cohort: Path, task: str | None) -> str:
    """Return what the cohort says the positive class of a task is; empty where it says nothing."""
    path = Path(cohort) / "metadata" / TASKS
    if task is None or not path.is_file():
        return ""
    return str(json.loads(path.read_text()).get(task, ""))


def report_context(
    subject: Subject,
    scores: TaskScores | KindScores | None,
    judged: SplitPredictions,
    metrics: Mapping[str, float],
    latent: LatentDiagnostics | None,
    embedding: EmbeddingDiagnostics,
    tokens: Tokens | None,
    found: SuiteResult,
) -> ReportContext:
    """Return the report's content; parts the run or the cohort lack are left out."""
    experiment, split = subject.experiment, subject.split
    past = history.read(subject.run)
    last = checkpoint.saved_progress(subject.run)
    parameters = sum(p.numel() for p in subject.loaded.model.parameters())
    run = {"family": experiment.family, "parameters": f"{parameters:,}"}
    if last is not None:
        run |= {"steps": f"{last.step:,}", "training": f"{last.seconds / 60:.1f} min"}
        least, most = experiment.cluster.least_workers, experiment.cluster.most_workers
        run |= {"workers": f"{most}" if least == most else f"{least} to {most}"}
    notes = [*(scores.notes if scores else ()), *found.notes]
    if said := positive_class(subject.cohort, subject.task):
        notes.append(f"{subject.task}: {said}.")
    if subject.task is None:
        notes.append("Without a task there is no probe and no baseline.")
    return ReportContext(
        title=f"{experiment.name} on {subject.cohort.resolve().name}",
        run=run,
        task=subject.task or "",
        split=split,
        metrics=metrics,
        verdicts=scores.verdicts if scores else (),
        notes=notes,
        latents={"set posterior": latent} if latent else {},
        embeddings={"patient embedding": embedding},
        reconstruction=None
        if tokens is None
        else reconstruction_table(metrics, split, subject.loaded.vocabulary.scaling),
        sections=found.sections,
        captions=found.captions,
        figures={
            **_figures(subject, scores, judged, past, latent, tokens),
            **found.figures,
        },
        cohort=_cohort_facts(subject),
        splits=split_sizes(subject.cohort, subject.task, subject.experiment.cache),
        rejected=_rejected(subject.cohort),
        config=to_yaml(experiment),
        versions={
            n: version(n) for n in ("ehr_ray", "ray", "torch", "mlflow", "scikit-learn", "lightgbm")
        },
    )


def _figures(
    subject: Subject,
    scores: TaskScores | KindScores | None,
    judged: SplitPredictions,
    past: Any,
    latent: LatentDiagnostics | None,
    tokens: Tokens | None,
) -> dict[str, Any]:
    split, shown = subject.split, {}
    if len(past):
        shown["loss_curves"] = figures.loss_curves(past)
    binary = scores if isinstance(scores, TaskScores) else None
    if binary is not None and 0 < binary.labels[split].mean() < 1:
        label = binary.labels[split]
        shown["roc_pr"] = figures.roc_pr(label, binary.probabilities[split])
        shown["calibration"] = figures.calibration(
            label, binary.probabilities[split][MODEL], binary.uncalibrated[split]
        )
    shown["embedding_map"] = embedding_map(
        matrix(judged.samples, "embedding"),
        judged.label if binary else None,
        subject.task or "outcome",
        umap=subject.experiment.evaluation.umap_patients,
        seed=subject.experiment.seed,
    )
    if latent is not None:
        shown["kl_per_dimension"] = figures.kl_per_dimension(latent.kl_per_dimension, latent.active)
    if tokens is not None and len(tokens.value):
        shown["reconstruction"] = figures.reconstruction(
            examples(tokens, subject.loaded.vocabulary.codes)
        )
    return shown


def _cohort_facts(subject: Subject) -> dict[str, str]:
    result = {"cohort": canonical(subject.cohort)}
    if not subject.own:
        result["fitted on"] = subject.experiment.data.cohort
    result |= provenance(subject.cohort)
    result["codes known to the model"] = f"{len(subject.loaded.vocabulary):,}"
    return result


def provenance(cohort: Path) -> dict[str, str]:
    """Return what a cohort says of where it comes from; empty where it says nothing."""
    path = cohort / "metadata" / "dataset.json"
    note = json.loads(path.read_text()) if path.is_file() else {}
    names = ("dataset_name", "dataset_version", "etl_name", "etl_version")
    return {name.replace("_", " "): str(note[name]) for name in names if note.get(name)}


def split_sizes(
    cohort: Path, task: str | None, cache: Path, *, on_ray: bool = False
) -> list[SplitSize]:
    """Return how many patients, labels of a task and positive ones each split of a cohort has.

    The manifest tells of patients; labels are counted as they are divided, once.
    """
    with opened(cohort, cache, on_ray=on_ray) as manifest:
        patients = {split: manifest.total("subjects", split) for split in splits_of(cohort)}
    if task is None:
        return [SplitSize(split, number) for split, number in patients.items()]
    labels = task_labels(cohort, task, cache, on_ray=on_ray).splits
    return [
        SplitSize(split, number, labels[split].labelled, labels[split].positive)
        for split, number in patients.items()
    ]


def _rejected(cohort: Path) -> Rejected | None:
    path = cohort / "metadata" / "rejected.parquet"
    if not path.is_file():
        return None
    table = files.read_parquet(path)
    counts = dict(Counter(masked(reason) for reason in table["reason"].to_pylist()))
    record = cohort / "metadata" / "ingest.json"
    summary = json.loads(record.read_text())["summary"] if record.is_file() else {}
    rows = summary.get("rows_read")
    if rows is None:  # a cohort of another tool says not what it was read from
        shards = [path for paths in splits_of(cohort).values() for path in paths]
        rows = sum(in_place.footer(p).num_rows for p in shards) + len(table)
    return Rejected(len(table), rows, counts, tuple(told(summary.get("changes", {}))))


def summary(
    subject: Subject,
    scores: TaskScores | KindScores | None,
    latent: LatentDiagnostics | None,
    metrics: Mapping[str, float],
    report: Path | None,
    notes: list[str],
    found: SuiteResult,
) -> list[str]:
    """Return what a person should read on the screen."""
    lines: list[str] = []
    split = subject.split
    if isinstance(scores, KindScores):
        lines += _kind_lines(subject, scores)
    elif scores is not None:
        lines.append(
            f"{subject.task} on {split} of {subject.cohort}: "
            f"{len(scores.labels[split]):,} rows, {scores.labels[split].mean():.1%} positive"
        )
        names = [name for name in TITLES if f"{metric_prefix(name, split)}/auroc" in metrics]
        if split in SEEN:
            lines.append(SEEN[split])
        rarer = min(int(scores.labels[split].sum()), int((~scores.labels[split]).sum()))
        if rarer < FEW:
            lines.append(
                f"{rarer} rows of the rarer class: the intervals below are as wide as that makes "
                "them, and hardly anything can be told apart"
            )
        lines.append(f"{'':60}{'AUROC':22}{'AUPRC':22}{'min(Se,P+)':22}")
        for name in names:
            at, title = metric_prefix(name, split), title_of(name, metrics, split)
            lines.append(f"{title:60}" + "".join(f"{_cell(metrics, at, m):22}" for m in _SHOWN))
    if scores is not None:
        lines += [f"the model {sentence}" for sentence in scores.verdicts]
        lines += [f"note: {note}" for note in scores.notes]
    lines += [f"note: {note}" for note in found.notes]
    if latent is not None:
        young = " (after few steps: untrained, rather)" if _untrained(subject.run) else ""
        lines.append(f"latent: {latent.verdict}: {latent.reason}{young}")
    at = f"{split}/reconstruction/hidden_live"
    if f"{at}/mse" in metrics:
        ours, mean, last = (metrics[f"{at}/{name}"] for name in ("mse", "mse_mean", "mse_last"))
        lines.append(
            f"hidden values, measured then: squared error {ours:.3f} of the model, "
            f"{mean:.3f} of the {CENTRES[subject.loaded.vocabulary.scaling]}, "
            f"{last:.3f} of the last value"
        )
    lines += [
        *found.lines,
        *(f"undefined here, as with too few rows: {name}" for name in notes[:3]),
    ]
    if report is not None:
        lines.append(f"results: {_shown(report.with_name('results.md'))}")
        lines.append(f"report: {_shown(report)}")
    return lines


def _untrained(run: Path) -> bool:
    """Whether a run has had too few steps for its latent to be judged, as a search has it."""
    last = checkpoint.saved_progress(run)
    return last is not None and last.step < UNTRAINED_STEPS


def _kind_lines(subject: Subject, scores: KindScores) -> Iterator[str]:
    """Yield the rows of the comparison on a task of numbers or classes."""
    split, names = subject.split, METRICS[scores.kind]
    yield f"{subject.task} on {split} of {subject.cohort}: {len(scores.labels[split]):,} rows"
    if split in SEEN:
        yield SEEN[split]
    yield f"{'':60}" + "".join(f"{HEADS[name]:22}" for name in names)
    for name in scores.predicted[split]:
        at = metric_prefix(name, split)
        cells = "".join(f"{_cell(scores.metrics, at, metric):22}" for metric in names)
        yield f"{kind_title(name, scores, split):60}{cells}"


def _shown(path: Path) -> str:
    return uri_of(path) or os.path.relpath(path)


FEW = 20
"""Rows of a class below which a comparison tells next to nothing."""
_SHOWN = ("auroc", "auprc", "min_se_ppv")


def _cell(metrics: Mapping[str, float], at: str, name: str) -> str:
    value = metrics.get(f"{at}/{name}", float("nan"))
    if not np.isfinite(value):
        return "undefined"
    low, high = metrics.get(f"{at}/{name}/low", value), metrics.get(f"{at}/{name}/high", value)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
