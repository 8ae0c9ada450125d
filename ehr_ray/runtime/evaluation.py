"""`evaluate`: a run's representation measured beside simple baselines, and the report of it."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ehr_ray.errors import InputError
from ehr_ray.evaluation.baselines import title_of
from ehr_ray.evaluation.collapse import (
    LatentDiagnostics,
    embedding_diagnostics,
    latent_diagnostics,
)
from ehr_ray.evaluation.downstream import (
    BASELINES,
    MODEL,
    PROBE,
    Split,
    TaskScores,
    fit_task,
    score_task,
)
from ehr_ray.evaluation.reconstruction import (
    Tokens,
    reconstruction_metrics,
)
from ehr_ray.evaluation.report import write_metrics, write_predictions, write_report
from ehr_ray.evaluation.suites import Part, SuiteInput, SuiteResult, get_suite, merged
from ehr_ray.events.features import select_codes
from ehr_ray.events.labels import Labels, choose_task, read_labels
from ehr_ray.events.patients import splits_of
from ehr_ray.runtime.datasets import Say, split_shards
from ehr_ray.runtime.inference import (
    Request,
    matrix,
    predict_shards,
    read_tables,
    require_known_codes,
    write_embeddings,
)
from ehr_ray.runtime.reporting import Subject, report_context
from ehr_ray.runtime.session import session
from ehr_ray.runtime.tracking import Tracker, find_run
from ehr_ray.train import checkpoint

FEATURE_CODES = 200
"""Codes that get simple features at most: the most frequent in train."""
ARTIFACTS = ("metrics.json", "predictions", "embeddings", "figures", "report.html")


def evaluate(
    run: Path,
    *,
    cohort: Path | None = None,
    split: str = "held_out",
    task: str | None = None,
    output: Path | None = None,
    address: str | None = None,
    verbose: bool = False,
    say: Say = lambda _: None,
) -> list[str]:
    """Evaluate a run; return what a person should read.

    Probe and baselines are fitted on the train split of the run's own cohort and calibrated on
    its tuning split, whichever cohort is scored; nothing after a prediction time reaches a model.
    """
    subject = _subject(Path(run), cohort, split, task, output)
    with session(address, verbose=verbose):
        scores, parts = _score(subject, say)
    return _write(subject, scores, parts, say)


def _subject(
    run: Path, cohort: Path | None, split: str, task: str | None, output: Path | None
) -> Subject:
    loaded = checkpoint.load(run)
    home = Path(loaded.experiment.data.cohort)
    place = home if cohort is None else Path(cohort)
    if not place.is_dir():
        flag = "data.cohort" if cohort is None else "--cohort"
        raise InputError(f"{flag}={place}: no such folder; give the cohort as --cohort PATH")
    own = place.resolve() == home.resolve()
    split_shards(place, split)
    if not own:
        require_known_codes(place, loaded.vocabulary)
    trained_for = loaded.experiment.task.name if loaded.experiment.task else None
    wanted = task or loaded.experiment.evaluation.task or trained_for
    if wanted is None and not own and home.is_dir():
        wanted = choose_task(home, None)
    task = choose_task(place, wanted)
    if task is not None and not own:
        if not home.is_dir():
            raise InputError(
                f"{home}: the run's own cohort is gone, and the probe is fitted on it; restore it"
            )
        choose_task(home, task)
    target = output or (run if own else run / "evaluations" / place.resolve().name)
    return Subject(run, loaded, place, own, split, task, Path(target))


@dataclass(frozen=True)
class Parts:
    """What inference gave: `fit` on the run's own train and tuning, `judged` on the split asked."""

    fit: dict[str, Part]
    judged: Part

    def written(self, subject: Subject) -> dict[str, Part]:
        """Return the splits whose embeddings and predictions are written: never of two cohorts."""
        return {**(self.fit if subject.own else {}), subject.split: self.judged}


def _score(subject: Subject, say: Say) -> tuple[TaskScores | None, Parts]:
    """Embed what is needed; fit on the run's cohort, score the split asked for."""
    home = Path(subject.experiment.data.cohort)
    if subject.task is None:
        say("no labels: embedding whole patients")
        wanted = bool(subject.loaded.family.suites) and home.is_dir()
        fit = _fit_parts(subject, home, None, say) if wanted else {}
        return None, Parts(fit, _judged(subject, fit, None, say))
    labels = read_labels(home, subject.task)
    fit = _fit_parts(subject, home, labels, say)
    if "train" not in fit or not len(fit["train"].samples):
        raise InputError(f"{home}: no {subject.task} label in the train split to fit a probe on")
    there = labels if subject.own else read_labels(subject.cohort, subject.task)
    parts = Parts(fit, _judged(subject, fit, there, say))
    if not len(parts.judged.samples):
        raise InputError(f"{subject.cohort}: no {subject.task} label in the {subject.split} split")
    if "tuning" not in fit:
        raise InputError(f"{home}: no tuning split to choose and calibrate on; ingest with one")
    say("fitting the probe and the baselines")
    seed = subject.experiment.seed
    tuning = _split(fit["tuning"])
    fitted = fit_task(_split(fit["train"]), tuning, seed=seed)
    scored = {"tuning": tuning} if subject.own else {}
    scored |= {subject.split: _split(parts.judged)}
    say("scoring, with bootstrap intervals")
    scores = score_task(
        fitted, scored, seed=seed, num_bootstrap=subject.experiment.evaluation.bootstrap
    )
    return scores, parts


def _fit_parts(subject: Subject, home: Path, labels: Labels | None, say: Say) -> dict[str, Part]:
    names = [name for name in ("train", "tuning") if splits_of(home).get(name)]
    return {name: _embedded(subject, home, name, labels, say) for name in names}


def _judged(subject: Subject, fit: dict[str, Part], labels: Labels | None, say: Say) -> Part:
    if subject.own and subject.split in fit:
        return fit[subject.split]
    return _embedded(subject, subject.cohort, subject.split, labels, say)


def _embedded(subject: Subject, cohort: Path, split: str, labels: Labels | None, say: Say) -> Part:
    """Return a split's inference; that of the run's own train and tuning is kept in the run."""
    shards = split_shards(cohort, split)
    fitted_on = cohort.resolve() == Path(subject.experiment.data.cohort).resolve()
    judged = split == subject.split and cohort == subject.cohort
    weights = checkpoint.checkpoint_folder(subject.run) / "model.safetensors"
    vocabulary = subject.loaded.vocabulary
    codes = select_codes(vocabulary.count, FEATURE_CODES)
    patients = sum(_num_subjects(path) for path in shards)
    share = subject.experiment.evaluation.max_patients / max(1, patients)
    request = Request(
        weights.parent.absolute(),
        untrained=labels is not None,
        features=tuple(codes.tolist()) if labels is not None else None,
        diagnose=share if judged else 0.0,
        outputs=share if subject.loaded.family.outputs else 0.0,
    )
    files = [weights, *shards]
    if labels is not None:
        files.append(cohort / "labels" / f"{labels.task}.parquet")
    stamp = [(str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    kept = [request.diagnose, request.outputs]
    key = hashlib.sha256(json.dumps([stamp, kept]).encode()).hexdigest()[:16]
    keep = fitted_on and not judged
    folder = subject.run.absolute() / ".parts" / f"{split}-{key}"
    done = folder / "done"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        cuts = None if labels is None else labels.cuts()
        predict_shards(shards, folder, request, cuts, say=say, verb=f"embedded {split} shards")
        done.touch()
    parts = [folder / f"{index:05d}" for index in range(len(shards))]
    samples = read_tables(parts, "samples")
    if samples is None:
        raise InputError(f"{cohort}: no labelled patient in the {split} split")
    names = ("latents", "tokens", *subject.loaded.family.outputs)
    found = {name: _numbered(parts, name) for name in names}
    label = None
    if labels is not None:
        time = samples["prediction_time"].cast(pa.int64()).to_numpy()
        label = labels.look_up(samples["subject_id"].to_numpy(), time)
    result = Part(samples, {name: t for name, t in found.items() if t is not None}, label)
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def _num_subjects(shard: Path) -> int:
    return len(pa.compute.unique(pq.read_table(shard, columns=["subject_id"])["subject_id"]))


def _numbered(parts: list[Path], name: str) -> pa.Table | None:
    """Read a table of several shards with `sample` counted over all of them."""
    tables, first = [], 0
    for part in parts:
        if (part / f"{name}.parquet").is_file():
            table = pq.read_table(part / f"{name}.parquet")
            shifted = pa.array(table["sample"].to_numpy() + first)
            tables.append(table.set_column(table.column_names.index("sample"), "sample", shifted))
        if (part / "samples.parquet").is_file():
            first += pq.ParquetFile(part / "samples.parquet").metadata.num_rows
    return pa.concat_tables(tables) if tables else None


def _split(part: Part) -> Split:
    samples = part.samples
    assert part.label is not None
    return Split(
        subject_id=samples["subject_id"].to_numpy(),
        prediction_time=samples["prediction_time"].to_numpy(),
        label=part.label,
        embedding=matrix(samples, "embedding"),
        untrained=matrix(samples, "untrained"),
        features=matrix(samples, "features"),
        logit=samples["logit"].to_numpy() if "logit" in samples.column_names else None,
    )


def _write(subject: Subject, scores: TaskScores | None, parts: Parts, say: Say) -> list[str]:
    """Write metrics, predictions, embeddings, figures and the report; return the summary."""
    say("writing the report")
    target, split = subject.target, subject.split
    metrics = dict(scores.metrics) if scores else {}
    part = parts.judged
    latent: LatentDiagnostics | None = None
    if "latents" in part.tables:
        posterior = part.tables["latents"]
        latent = latent_diagnostics(
            matrix(posterior, "mu"), matrix(posterior, "logvar"), posterior["sample"].to_numpy()
        )
        metrics |= {f"{split}/latent/{k}": v for k, v in latent.metrics().items()}
    embedding = embedding_diagnostics(matrix(part.samples, "embedding"))
    metrics |= {f"{split}/embedding/{k}": v for k, v in embedding.metrics().items()}
    tokens = None
    if "tokens" in part.tables:
        table = part.tables["tokens"]
        tokens = Tokens.from_columns(
            {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
        )
        measured = reconstruction_metrics(tokens)
        metrics |= {f"{split}/reconstruction/{k}": v for k, v in measured.items()}
    target.mkdir(parents=True, exist_ok=True)
    found = _suites(subject, parts, say)
    metrics |= found.metrics
    notes = write_metrics(target / "metrics.json", metrics)
    written = parts.written(subject)
    for name, one in written.items():
        write_embeddings(target / "embeddings" / f"{name}.parquet", one.samples)
    if scores is not None:
        for name, probabilities in scores.probabilities.items():
            samples = written[name].samples
            write_predictions(
                target / "predictions" / f"{name}.parquet",
                samples["subject_id"].to_numpy(),
                samples["prediction_time"].to_numpy(),
                scores.labels[name],
                probabilities[MODEL],
            )
    context = report_context(subject, scores, part, metrics, latent, embedding, tokens, found)
    report = write_report(target, context)
    if subject.own:
        tracker = Tracker(find_run(subject.run))
        last = checkpoint.saved_progress(subject.run)
        tracker.metrics(
            {k: v for k, v in metrics.items() if np.isfinite(v)}, last.step if last else 0
        )
        tracker.artifacts(target, (*ARTIFACTS, *found.artifacts))
    return _summary(subject, scores, latent, metrics, report, notes, found)


def _suites(subject: Subject, parts: Parts, say: Say) -> SuiteResult:
    """Run the family's suites on what inference gave."""
    names = subject.loaded.family.suites
    if names:
        say(f"measuring {', '.join(names)}")
    given = SuiteInput(
        split=subject.split,
        judged=parts.judged,
        fit=parts.fit,
        model=subject.experiment.model,
        vocabulary=subject.loaded.vocabulary,
        target=subject.target,
        seed=subject.experiment.seed,
        num_bootstrap=subject.experiment.evaluation.bootstrap,
    )
    return merged([get_suite(name)(given) for name in names])


def _summary(
    subject: Subject,
    scores: TaskScores | None,
    latent: LatentDiagnostics | None,
    metrics: Mapping[str, float],
    report: Path,
    notes: list[str],
    found: SuiteResult,
) -> list[str]:
    lines, split = [], subject.split
    if scores is not None:
        lines.append(
            f"{subject.task} on {split} of {subject.cohort}: "
            f"{len(scores.labels[split]):,} rows, {scores.labels[split].mean():.1%} positive"
        )
        others = (PROBE, *BASELINES)
        names = [MODEL, *(b for b in others if f"baseline/{b}/{split}/auroc" in metrics)]
        lines.append(f"{'':46}{'AUROC':22}{'AUPRC':22}{'min(Se,P+)':22}")
        for name in names:
            at = split if name == MODEL else f"baseline/{name}/{split}"
            title = title_of(name, metrics, split)
            lines.append(f"{title:46}" + "".join(f"{_cell(metrics, at, m):22}" for m in _SHOWN))
        lines += [f"the model {sentence}" for sentence in scores.verdicts]
        lines += [f"note: {note}" for note in scores.notes]
    if latent is not None:
        lines.append(f"latent: {latent.verdict}: {latent.reason}")
    at = f"{split}/reconstruction/hidden_live"
    if f"{at}/mse" in metrics:
        ours, mean, last = (metrics[f"{at}/{name}"] for name in ("mse", "mse_mean", "mse_last"))
        lines.append(
            f"hidden values, measured then: squared error {ours:.3f} of the model, "
            f"{mean:.3f} of the train mean, {last:.3f} of the last value"
        )
    lines += [*found.lines, *(f"undefined: {name}" for name in notes[:3])]
    lines.append(f"report: {os.path.relpath(report)}")
    return lines


_SHOWN = ("auroc", "auprc", "min_se_ppv")


def _cell(metrics: Mapping[str, float], at: str, name: str) -> str:
    value = metrics.get(f"{at}/{name}", float("nan"))
    if not np.isfinite(value):
        return "undefined"
    low, high = metrics.get(f"{at}/{name}/low", value), metrics.get(f"{at}/{name}/high", value)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"
