"""`evaluate --zero-shot CODE`: how likely a code is, by futures that the model draws."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ehr_ray.commands.evaluate.predicted_splits import choose_features
from ehr_ray.commands.evaluate.report_content import Subject
from ehr_ray.errors import InputError
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.zero_shot import (
    Drawn,
    fitted_beside,
    zero_shot_result,
    zero_shot_table,
)
from ehr_ray.events.patients import splits_of
from ehr_ray.events.zero_shot import ZeroShot
from ehr_ray.registry import FAMILIES, get_family
from ehr_ray.runtime.data.dataset import named_origin, num_patients
from ehr_ray.runtime.data.rows import TaskTimes, sampled
from ehr_ray.runtime.data.tasks import Say, split_shards
from ehr_ray.runtime.inference.parts import Part, predict_parts
from ehr_ray.runtime.inference.shards import Request, ShardPredictor
from ehr_ray.runtime.inference.trajectories import (
    ShardAnswers,
    ShardTrajectories,
    answers,
    trajectories,
)
from ehr_ray.storage import files
from ehr_ray.storage.paths import canonical
from ehr_ray.train import checkpoint
from ehr_ray.train.prediction_tables import matrix, read_tables

FOLDER = "zero_shot"
Cuts = dict[int, list[int]]


def check_zero_shot(asked: ZeroShot | None, subject: Subject) -> None:
    """Refuse a model that draws no futures, or a question that the cohort cannot be asked."""
    if asked is None:
        return
    said, family = f"--zero-shot {asked.code}", subject.loaded.family
    given = family.evaluation.trajectories
    if given is None:
        able = [name for name in FAMILIES if get_family(name).evaluation.trajectories]
        raise InputError(
            f"{said}: family {family.name} draws no futures of a patient; give a run of "
            f"{' or '.join(able)} that tells the next event, a decoder"
        )
    if subject.experiment.task is not None:
        raise InputError(
            f"{said}: {subject.run.name} was trained for a task, and tells no next event; give the "
            "run it was pretrained by"
        )
    if lack := given.lacks(subject.experiment.model):
        raise InputError(f"{said}: {lack}")
    asked.codes(subject.loaded.vocabulary)
    if asked.from_hour is None and subject.task is None:
        raise InputError(f"{said}: give --from-hour HOURS, or a task with prediction times")
    home = subject.experiment.cohort
    if not home.is_dir() or not all(splits_of(home).get(name) for name in ("train", "tuning")):
        raise InputError(
            f"{said}: {home} has no train and tuning split, by which gaps of events and the models "
            "beside are fitted; restore it"
        )


def zero_shot(subject: Subject, asked: ZeroShot, scratch: Path, say: Say) -> SuiteResult:
    """Draw futures for the judged split, and measure them beside models fitted to the outcome.

    Each prediction goes to `zero_shot/<split>.parquet`. At most `evaluation.max_patients` patients
    are drawn for, and `evaluation.fit_patients` of train and of tuning fitted on.
    """
    settings, home = subject.experiment.evaluation, subject.experiment.cohort
    seed, split = subject.experiment.seed, subject.split
    if settings.baselines and subject.features is None:
        subject = replace(subject, features=choose_features(subject, say))
    fitted = {
        name: _outcomes(subject, asked, home, name, settings.fit_patients, scratch / name, say)
        for name in ("train", "tuning")
    }
    judged, left_out = _outcomes(
        subject,
        asked,
        subject.events,
        split,
        settings.max_patients,
        scratch / "judged",
        say,
    )
    say(f"drawing {asked.draws:,} futures of {len(judged.label):,} predictions")
    weights = checkpoint.checkpoint_folder(subject.run).absolute()
    function = ShardTrajectories(
        ShardPredictor(Request(canonical(weights), origin=_origin(subject, subject.events))),
        asked,
        _cuts(judged.subject_id, judged.prediction_time),
        [canonical(shard) for shard in split_shards(home, "tuning")],
        seed,
    )
    shards = split_shards(subject.events, split)
    table, seconds = trajectories(
        shards, scratch / "drawn", function, on_ray=subject.on_ray, say=say
    )
    drawn = Drawn(
        occurred=table["occurred"].to_numpy(),
        cut=table["cut"].to_numpy(),
        seconds=seconds,
        left_out=left_out,
    )
    beside = fitted_beside(fitted["train"][0], fitted["tuning"][0], judged, seed=seed)
    files.write_parquet(
        zero_shot_table(asked, drawn, judged), subject.target / FOLDER / f"{split}.parquet"
    )
    found = zero_shot_result(
        asked, drawn, judged, beside, split, seed=seed, num_bootstrap=settings.bootstrap
    )
    return replace(found, artifacts=(FOLDER,))


def _outcomes(
    subject: Subject,
    asked: ZeroShot,
    cohort: Path,
    split: str,
    patients: int,
    folder: Path,
    say: Say,
) -> tuple[Split, int]:
    """Return the rows of a split whose outcome is known, embedded, and how many are left out.

    Of more than `patients` a share is asked for, the same each time.
    """
    shards = split_shards(cohort, split)
    weights = checkpoint.checkpoint_folder(subject.run).absolute()
    request = Request(
        canonical(weights), features=subject.features, origin=_origin(subject, cohort)
    )
    given = _given(subject, asked, cohort)
    function = ShardAnswers(ShardPredictor(request), asked, given)
    table = answers(shards, folder / "answers", function, on_ray=subject.on_ray, say=say)
    cache = subject.cache_of(cohort)
    share = patients / max(1, num_patients(cohort, split, cache, on_ray=subject.on_ray))
    chosen = [sampled(who, share) for who in table["subject_id"].to_pylist()]
    if not all(chosen):
        say(f"{split}: {sum(chosen):,} of {len(chosen):,} predictions are asked for")
    table = table.filter(pa.array(chosen, pa.bool_()))
    known = table["happened"].is_valid().to_numpy() & table["known_before"].to_numpy()
    rows = table.filter(pa.array(known))
    subjects, times = rows["subject_id"].to_numpy(), rows["prediction_time"].to_numpy()
    part = Part(shards, folder / "embedded", request, _cuts(subjects, times))
    predict_parts([part], on_ray=subject.on_ray, say=say, verb=f"embedded {split} shards")
    return _split(rows, read_tables(part.folders, "samples")), int((~known).sum())


def _split(rows: pa.Table, samples: pa.Table | None) -> Split:
    empty = np.zeros((0, 1), np.float32)
    features = None
    if samples is not None and "features" in samples.column_names:
        features = matrix(samples, "features")
    return Split(
        subject_id=rows["subject_id"].to_numpy(),
        prediction_time=rows["prediction_time"].to_numpy(),
        label=rows["happened"].to_numpy(),
        embedding=empty if samples is None else matrix(samples, "embedding"),
        features=features,
    )


def _given(subject: Subject, asked: ZeroShot, cohort: Path) -> TaskTimes | None:
    """Return the prediction times of the task in a cohort; None where an hour is asked for."""
    if asked.from_hour is not None:
        return None
    return TaskTimes(subject.labels_of(cohort))


def _cuts(subjects: np.ndarray, times: np.ndarray) -> Cuts:
    found: Cuts = {}
    micros = times.astype("datetime64[us]").astype(np.int64)
    for subject, time in zip(subjects.tolist(), micros.tolist(), strict=True):
        found.setdefault(subject, []).append(time)
    return found


def _origin(subject: Subject, cohort: Path) -> tuple[str, ...] | None:
    """Return the codes of another cohort's origin; None: those of the run."""
    own = cohort.resolve() == subject.experiment.cohort.resolve()
    return None if own else named_origin(subject.cohort)
