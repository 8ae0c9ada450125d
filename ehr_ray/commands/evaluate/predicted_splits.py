"""What inference gives an evaluation: every split it needs, embedded once and cut by its labels."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.commands.evaluate.predicted_rows import PredictedRows, read_rows
from ehr_ray.commands.evaluate.report_content import Subject
from ehr_ray.config.task import OUTPUTS
from ehr_ray.errors import InputError
from ehr_ray.evaluation.suite import (
    SplitPredictions,
    SuiteInput,
    SuiteResult,
    get_suite,
    merged,
)
from ehr_ray.evaluation.tasks.downstream import Split, TaskScores
from ehr_ray.evaluation.tasks.early_warning import HourRows
from ehr_ray.evaluation.tasks.subgroups import Division, most_rows
from ehr_ray.events.patient_features import FeatureCodes, feature_codes
from ehr_ray.events.patients import splits_of, without_events_line
from ehr_ray.events.subgroups import MAX_PLACES
from ehr_ray.family import AnyFamily
from ehr_ray.runtime.data.dataset import named_origin, num_patients
from ehr_ray.runtime.data.manifest import opened
from ehr_ray.runtime.data.prepared import module_text
from ehr_ray.runtime.data.rows import TaskTimes
from ehr_ray.runtime.data.task_labels import TaskLabels
from ehr_ray.runtime.data.tasks import Say, split_shards
from ehr_ray.runtime.inference.parts import Part, predict_parts
from ehr_ray.runtime.inference.shards import LABEL, Request, of_precision
from ehr_ray.storage import sync
from ehr_ray.storage.listing import stamp
from ehr_ray.storage.lock import exclusive_lock
from ehr_ray.storage.paths import PARTS, absolute, canonical, local
from ehr_ray.train import checkpoint
from ehr_ray.train.prediction_tables import matrix
from ehr_ray.train.task_probe import TaskProbe

log = logging.getLogger(__name__)
AGAIN: Final = "another evaluate reads the same split of this run; waiting until it has ended"
LAYOUT: Final = 1
"""Bump when the same patients, asked the same, would give other tables."""


@dataclass(frozen=True)
class EvaluationInputs:
    """What inference gave: `fit` on the run's own train and tuning, `judged` on the split asked."""

    fit: dict[str, PredictedRows]
    """Fitted on is the sample of each, of about `evaluation.fit_patients` rows at most."""
    judged: PredictedRows
    sampled: Collection[str] = ()
    """Splits of which `fit` has not all rows."""

    def written(self, subject: Subject) -> dict[str, PredictedRows]:
        """Return the splits whose embeddings and predictions are written: never of two cohorts."""
        return {**(self.fit if subject.own else {}), subject.split: self.judged}


def choose_features(subject: Subject, say: Say) -> FeatureCodes:
    """Choose the codes baselines read, by the patients of the run's own train split."""
    family, vocabulary = subject.loaded.family.evaluation, subject.loaded.vocabulary
    allowed = family.baseline_codes
    home, cache = subject.experiment.cohort, subject.experiment.cache
    split_shards(home, "train")
    with opened(home, cache, on_ray=subject.on_ray, say=say) as manifest:
        return feature_codes(
            manifest,
            vocabulary,
            allowed(subject.experiment.model, vocabulary) if allowed else None,
        )


def predict(
    subject: Subject,
    labels: TaskLabels | None,
    judged_labels: TaskLabels | None,
    held: contextlib.ExitStack,
    say: Say,
    *,
    fit: bool = True,
) -> EvaluationInputs:
    """Embed the split asked for and, with `fit`, the run's own train and tuning, as far as there.

    `labels` are those of the run's own cohort, `judged_labels` those of the cohort asked for. All
    shards are embedded in one pass; one that an earlier, ended pass left in the run is not again.
    Where the judged rows are more than are held, they are read again: what was told of them stays
    until `held` is closed, after an error longer, and another evaluation of the same waits for it.
    """
    home = subject.experiment.cohort
    names = [name for name in ("train", "tuning") if fit and splits_of(home).get(name)]
    asked = [_asked(subject, home, name, labels, say) for name in names]
    if not subject.own or subject.split not in names:
        asked.append(_asked(subject, subject.events, subject.split, judged_labels, say))
    own = len(asked) == len(names)  # the split asked for is fitted on too
    one = asked[names.index(subject.split) if own else -1]
    if one.share < 1:
        folder = one.part.folder
        lock, again = folder.with_name(f"{folder.name}.lock"), f"{subject.run}: {AGAIN}"
        held.enter_context(exclusive_lock(lock, waiting=lambda: log.warning(again)))
    # Two evaluations of a run may share a part, which who reads it first removes.
    busy = f"{subject.run}: another evaluate of this run is embedding; waiting until it has"
    with exclusive_lock(_parts(subject) / ".lock", waiting=lambda: log.warning(busy)):
        parts = [each.part for each in asked]
        for part in parts:
            sync.fetch(part.folder, missing_ok=True)
        predict_parts(parts, resume=True, on_ray=subject.on_ray, say=say)
        fitted = {
            name: _read(subject, each, each.fit_share)
            for name, each in zip(names, asked, strict=False)
        }
        same = own and one.share == one.fit_share
        judged = fitted[subject.split] if same else _read(subject, one, one.share)
        if judged.whole:
            sync.remove(one.part.folder)
        else:
            held.push(_removes(one.part.folder))
    sampled = {name for name, each in zip(names, asked, strict=False) if each.fit_share < 1}
    return EvaluationInputs(fitted, judged, sampled)


def _removes(folder: Path) -> Callable[..., None]:
    """Return the exit that removes a folder; after an error it stays, and the next one resumes."""

    def leave(kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            sync.remove(folder)

    return leave


def _parts(subject: Subject) -> Path:
    return subject.run.absolute() / PARTS


@dataclass(frozen=True)
class _Asked:
    """A split to embed; what comes of train and tuning is kept for the next evaluation."""

    cohort: Path
    split: str
    part: Part
    fit_share: float
    """Of the subjects, that is fitted on."""
    share: float
    """Of the subjects, whose wide columns are held of a split that is judged."""


def _asked(
    subject: Subject, cohort: Path, split: str, labels: TaskLabels | None, say: Say
) -> _Asked:
    """Return what a split's shards are asked for, in a folder of the run named by all of it."""
    shards = split_shards(cohort, split)
    fitted_on = cohort.resolve() == subject.experiment.cohort.resolve()
    judged = split == subject.split and cohort.resolve() == subject.events.resolve()
    model = checkpoint.checkpoint_folder(subject.run)
    cache = subject.cache_of(cohort)
    # A row a label: shares of these bound what is held, however many labels a patient has or none.
    if labels is not None and split in labels.splits:
        there = max(1, labels.splits[split].labelled)
    else:
        there = max(1, num_patients(cohort, split, cache, on_ray=subject.on_ray))
    request = _request(subject, model, split, there, labels, judged)
    if not fitted_on:
        request = dataclasses.replace(request, origin=named_origin(cohort))
    inputs, times = [*(model / name for name in checkpoint.FILES), *shards], None
    if labels is not None:
        inputs += map(local, labels.files)
        times = TaskTimes(labels)
    stamps = [(absolute(p), *stamp(p)) for p in inputs]
    asked = {**dataclasses.asdict(request), "checkpoint": ""}
    if labels is not None:
        asked |= {LABEL: [labels.kind, *labels.classes]}
    asked |= of_precision(subject.experiment, asked.pop("gpus"))
    fit_share = min(1.0, subject.experiment.evaluation.fit_patients / there)
    if times is not None and not judged and fit_share < 1:
        times = dataclasses.replace(times, share=fit_share)
        asked["share"] = fit_share
        verb = "fitting" if split == "train" else "calibrating"
        say(f"{verb} on {100 * fit_share:.3g} % of the {split} patients (evaluation.fit_patients)")
    hours_share = request.hours_share if request.hours else 0.0
    share = min(1.0, max(fit_share, request.diagnose, request.outputs, hours_share))
    family = subject.loaded.family
    key = hashlib.sha256(json.dumps([made_by(family), stamps, asked]).encode()).hexdigest()[:16]
    # What is predicted of a mapped copy goes with it.
    place = _parts(subject) if subject.mapped is None or fitted_on else subject.mapped
    folder = place / f"{split}-{key}"
    part = Part(shards, folder, request, times)
    return _Asked(cohort, split, part, fit_share, share)


def made_by(family: AnyFamily) -> list[int | str]:
    """Return what of the code decides on a family's tables: versions, and modules that make them.

    A module may be in another encoding than UTF-8; bytes that are none stand for themselves.
    """
    tables = family.evaluation
    asked = (family.transform, family.predict, tables.latents, tables.reconstruct)
    makers = [maker for maker in (*asked, *tables.outputs.values()) if maker is not None]
    texts = [module_text(maker).decode(errors="surrogateescape") for maker in makers]
    return [LAYOUT, family.version, *dict.fromkeys(texts)]


def _read(subject: Subject, asked: _Asked, share: float) -> PredictedRows:
    """Return what was predicted of a split, with the wide columns of a share of its subjects."""
    names = ("latents", "tokens", "hours", *subject.loaded.family.evaluation.outputs)
    found = read_rows(asked.part.folders, names, share)
    if found is None:
        raise InputError(
            f"{asked.cohort}: no labelled patient in the {asked.split} split"
            + (", or none in a sample of evaluation.fit_patients; raise it" if share < 1 else "")
        )
    if not len(found.sample.samples):
        raise InputError(
            f"{asked.cohort}: none of the {len(found.rows.samples):,} rows of {asked.split} is in "
            "a sample of evaluation.fit_patients; raise it"
        )
    return found


def _request(
    subject: Subject,
    folder: Path,
    split: str,
    there: int,
    labels: TaskLabels | None,
    judged: bool,
) -> Request:
    """Without labels nothing is compared, so only the embedding and its diagnostics are made.

    `there` are the rows of the split.
    """
    settings, family = subject.experiment.evaluation, subject.loaded.family
    trained_for = subject.experiment.task
    evaluation = family.evaluation
    beside = labels is not None and settings.baselines
    binary = labels is not None and labels.kind == "binary"
    share = settings.max_patients / there
    return Request(
        canonical(folder.absolute()),
        untrained=beside,
        features=subject.features if beside else None,
        diagnose=share if judged else 0.0,
        outputs=share if evaluation.outputs else 0.0,
        own_output=trained_for is None or trained_for.name == subject.task,
        answer=own_answer(subject) if binary else None,
        hours=tuple(sorted(map(float, set(settings.hours)))) if binary else (),
        hours_share=settings.hour_patients / there,
        hours_fit=split == "train" and not judged,
        subgroups=subject.subgroups if binary and judged else {},
        gpus=subject.gpus,
    )


def own_answer(subject: Subject) -> str | None:
    """Return the output by which a model answers the task by itself; None where it does not."""
    given = subject.loaded.family.evaluation.task_outputs
    return given(subject.experiment.model).get(subject.task or "") if given else None


def task_output(subject: Subject) -> str:
    """Return the name of the output of `Family.predict` that is the task's own logit."""
    return own_answer(subject) or "logit"


def task_probe(subject: Subject, scores: TaskScores, positive: str = "") -> TaskProbe:
    """Return what makes the model's probabilities of what it gives, of an ensemble the network's.

    `positive` is what the positive class is, in words.
    """
    assert subject.task is not None
    assert scores.model is not None
    assert scores.model.probe is not None
    output = "embedding" if scores.model.input == "embedding" else task_output(subject)
    return TaskProbe(subject.task, output, positive, scores.model.probe)


def split_of(predictions: SplitPredictions) -> Split:
    """Return the labelled rows of a split as arrays."""
    samples = predictions.samples
    assert predictions.label is not None
    inputs = {n: matrix(samples, n) for n in ("untrained", "features") if n in samples.column_names}
    own = [name for name in OUTPUTS.values() if name in samples.column_names]
    if "extra" in samples.column_names:
        inputs["rich"] = np.hstack([inputs["features"], matrix(samples, "extra")])
    return Split(
        subject_id=samples["subject_id"].to_numpy(),
        prediction_time=samples["prediction_time"].to_numpy(),
        label=predictions.label,
        embedding=matrix(samples, "embedding"),
        logit=_own_output(samples, own[0]) if own else None,
        **inputs,
    )


def _own_output(samples: pa.Table, name: str) -> np.ndarray:
    listed = pa.types.is_list(samples[name].type)
    return matrix(samples, name) if listed else samples[name].to_numpy()


def hours_of(predictions: SplitPredictions) -> dict[float, HourRows]:
    """Return the labelled rows of a split at each hour after the origin."""
    table = predictions.tables.get("hours")
    if table is None or predictions.label is None:
        return {}
    hour, result = table["hour"].to_numpy(), {}
    subject = predictions.samples["subject_id"].to_numpy()
    for one in np.unique(hour):
        rows = table.filter(pa.array(hour == one))
        sample = rows["sample"].to_numpy()
        inputs = {n: matrix(rows, n) for n in ("embedding", "features") if n in rows.column_names}
        if "logit" in rows.column_names:
            inputs["logit"] = rows["logit"].to_numpy()
        result[float(one)] = HourRows(sample, subject[sample], predictions.label[sample], inputs)
    return result


def divisions_of(
    predictions: SplitPredictions, subject: Subject
) -> tuple[list[Division], SuiteResult]:
    """Return (the subgroups of a split's rows, notes on those that are left out).

    Those that the experiment names are judged whole, of others `MAX_PLACES` groups of each.
    """
    divisions, notes = [], []
    for name, subgroup in subject.subgroups.items():
        if f"subgroup/{name}" not in predictions.samples.column_names:
            continue
        of_rows = predictions.samples[f"subgroup/{name}"].to_pylist()
        division, note = Division(name, subgroup.names, of_rows), ""
        if name not in subject.experiment.evaluation.subgroups:
            division, note = most_rows(division, MAX_PLACES)
        divisions.append(division)
        notes += [note] if note else []
    return divisions, SuiteResult(notes=tuple(notes))


def rows_without_events(predictions: SplitPredictions, split: str) -> SuiteResult:
    """Count the rows whose prediction time is before every timed event; nothing without any.

    Of such a row the model reads static values alone. The key is `<split>/rows_without_events`.
    """
    if "timed" not in predictions.samples.column_names:
        return SuiteResult()
    timed = predictions.samples["timed"].to_numpy(zero_copy_only=False)
    count = int((~timed).sum())
    if not count:
        return SuiteResult()
    return SuiteResult(
        metrics={f"{split}/rows_without_events": float(count)},
        notes=(without_events_line(count, len(timed)),),
    )


def suites_result(subject: Subject, inputs: EvaluationInputs, say: Say) -> SuiteResult:
    """Return what the family's suites find in what inference gave."""
    names = subject.loaded.family.evaluation.suites
    if names:
        say(f"measuring what {subject.loaded.family.name} can show besides")
    given = SuiteInput(
        split=subject.split,
        judged=inputs.judged.sample,
        fit={name: rows.sample for name, rows in inputs.fit.items()},
        model=subject.experiment.model,
        vocabulary=subject.loaded.vocabulary,
        target=subject.target,
        cohort=subject.events,
        home=subject.experiment.cohort if subject.experiment.cohort.is_dir() else None,
        task=subject.task,
        baselines=subject.experiment.evaluation.baselines,
        seed=subject.experiment.seed,
        num_bootstrap=subject.experiment.evaluation.bootstrap,
        sampled=inputs.sampled,
    )
    return merged([get_suite(name)(given) for name in names])
