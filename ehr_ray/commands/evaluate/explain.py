"""`evaluate --explain N`: what the risks of the N patients at highest risk were read from."""

import numpy as np
import pyarrow as pa

from ehr_ray.commands.evaluate.predicted_splits import task_probe
from ehr_ray.commands.evaluate.report_content import Subject
from ehr_ray.errors import InputError
from ehr_ray.evaluation.suite import SplitPredictions, SuiteResult
from ehr_ray.evaluation.tasks.attribution import (
    READ,
    Attribution,
    attribution_figure,
    attribution_table,
)
from ehr_ray.evaluation.tasks.downstream import TaskScores
from ehr_ray.evaluation.tasks.probe import logit
from ehr_ray.evaluation.tasks.verdicts import MODEL
from ehr_ray.events.patients import Patient
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.dataset import named_origin
from ehr_ray.runtime.data.tasks import Say, split_shards
from ehr_ray.runtime.inference.shards import Request, ShardPredictor
from ehr_ray.sources.dataset_check import subjects_of
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import canonical
from ehr_ray.train import checkpoint
from ehr_ray.train.occlusion import occlude

FOLDER = "explanations"
TITLE = "What the highest risks were read from"
EFFECTS = pa.schema(
    [
        pa.field("subject_id", pa.int64()),
        pa.field("prediction_time", pa.timestamp("us")),
        pa.field("code", pa.string()),
        pa.field("hour", pa.int64()),
        pa.field("hours", pa.int64()),
        pa.field("log_odds", pa.float64()),
    ]
)
"""What was hidden, `hours` long from `hour` after the origin on, and how far the log odds fell."""


def check_explain(count: int, subject: Subject) -> None:
    """Refuse an `--explain` that is no number of patients, or a run without a risk to explain."""
    if count < 0:
        raise InputError(f"--explain {count}: give a number of patients, 0 or more")
    if count and subject.task is None:
        raise InputError(f"--explain {count}: needs a task (--task), whose risk is explained")
    name = subject.experiment.family
    if count and get_family(name).represent is None:
        raise InputError(f"--explain {count}: family {name} has no representation a task reads")


def explain(
    subject: Subject, scores: TaskScores, judged: SplitPredictions, count: int, say: Say
) -> SuiteResult:
    """Explain the `count` rows at highest risk: a figure and a row of a table each.

    Of an ensemble the network is explained. All effects go to `explanations/<split>.parquet`.
    """
    assert judged.label is not None
    risk = scores.probabilities[subject.split][MODEL]
    chosen = np.argsort(-risk, kind="stable")[:count]
    own = None if subject.own else named_origin(subject.cohort)
    folder = checkpoint.checkpoint_folder(subject.run).absolute()
    shards = ShardPredictor(Request(canonical(folder), origin=own))
    patients = _patients(subject, judged.samples.take(chosen), shards)
    probe = task_probe(subject, scores)
    found = []
    for number, patient in enumerate(patients, start=1):
        say(f"explaining patient {number} of {len(patients)}")
        found.append(
            occlude(shards.predictor, patient, lambda outputs: logit(probe.answer(outputs)))
        )
    codes = subject.loaded.vocabulary.codes
    table = _effects(judged.samples.take(chosen), found, codes)
    files.write_parquet(table, subject.target / FOLDER / f"{subject.split}.parquet")
    labels = judged.label[chosen].tolist()
    names = [f"attribution_{number}" for number in range(1, len(found) + 1)]
    captions = {
        name: (
            f"Patient {number}: risk {one.risk:.0%}, outcome {'yes' if y else 'no'}",
            READ,
        )
        for number, (name, one, y) in enumerate(zip(names, found, labels, strict=True), start=1)
    }
    return SuiteResult(
        sections={TITLE: attribution_table(found, labels, codes)},
        figures={n: attribution_figure(one, codes) for n, one in zip(names, found, strict=True)},
        captions=captions,
        artifacts=(FOLDER,),
    )


def _patients(subject: Subject, rows: pa.Table, shards: ShardPredictor) -> list[Patient]:
    """Return the patient of each row, as known at its prediction time, in the order of the rows."""
    ids = rows["subject_id"].to_pylist()
    found: dict[int, Patient] = {}
    for path in split_shards(subject.events, subject.split):
        if not set(ids).isdisjoint(subjects_of(path).tolist()):
            some = shards.patients(sync.in_store(path))
            found |= {patient.subject_id: patient for patient in some if patient.subject_id in ids}
    times = rows["prediction_time"].cast(pa.int64()).to_pylist()
    return [found[subject_id].until(time) for subject_id, time in zip(ids, times, strict=True)]


def _effects(rows: pa.Table, found: list[Attribution], codes: tuple[str, ...]) -> pa.Table:
    """Return every effect as a row; without a `code` or an `hour` it is of all of them."""
    effects: list[dict[str, object]] = []
    for row, one in zip(
        rows.select(["subject_id", "prediction_time"]).to_pylist(), found, strict=True
    ):
        names = [codes[code] for code in one.codes]
        hours = one.hours.tolist()
        several = [
            *((name, None, e) for name, e in zip(names, one.by_code, strict=True)),
            *((None, hour, e) for hour, e in zip(hours, one.by_hour, strict=True)),
            *((names[i], hours[j], one.cells[i, j]) for i, j in np.argwhere(~np.isnan(one.cells))),
        ]
        effects += [
            {**row, "code": name, "hour": hour, "hours": one.width, "log_odds": float(effect)}
            for name, hour, effect in several
        ]
    return pa.Table.from_pylist(effects, schema=EFFECTS)
