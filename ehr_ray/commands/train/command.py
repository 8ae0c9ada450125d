"""An experiment to a trained run: prepare the data, train by Ray Train, keep the directory."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from ehr_ray.errors import ConfigError, InputError
from ehr_ray.experiment import Experiment, changes_since, dump, to_yaml, with_absolute_paths
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.progress import following
from ehr_ray.runtime.screen import Screen
from ehr_ray.runtime.session import check_resources, session_of
from ehr_ray.runtime.text_embedding import as_before, with_phrases
from ehr_ray.runtime.tracking import RUN_FILE, UNTOLD, Tracked, Tracker, find_run, open_run, untold
from ehr_ray.runtime.tracking_store import check_server, tracking_uri
from ehr_ray.runtime.training.launch import fit, fit_here
from ehr_ray.storage import copies, files, runs, sync
from ehr_ray.storage.lease import Lease, leased
from ehr_ray.storage.lock import run_lock
from ehr_ray.storage.paths import check_cohort_folder, local
from ehr_ray.train import history
from ehr_ray.train.checkpoint import (
    Progress,
    checkpoint_damage,
    checkpoint_folder,
    saved_progress,
)
from ehr_ray.train.statistics import LABEL
from ehr_ray.train.task import family_of

FREE_TO_CHANGE = (
    "output",
    "cluster.",
    "tracking.",
    "evaluation.",
    "search",
    "crossval",
    "tune.",
    "data.cache",
    "data.mode",
)
"""Where a run may differ from the one it resumes: none of these changes its numbers. The output is
where the run was found: one that was moved goes on in its new place."""


@dataclass(frozen=True)
class Trained:
    """What `train` did."""

    run: Path
    step: int
    best: float | None
    resumed_at: int
    already_finished: bool


def train(
    experiment: Experiment, *, screen: Screen | None = None, verbose: bool = False
) -> Trained:
    """Train an experiment, or resume it from its run directory; the same call for both.

    Where the family has a fallback and the latent has collapsed, other seeds are trained, and where
    two of three have, the fallback; what is returned is the run that stands.
    """
    screen, experiment = screen or Screen(), with_absolute_paths(experiment)
    done = {experiment.name: train_run(experiment, screen, verbose)}
    from ehr_ray.commands.train.fallback import resolve_collapse

    def seed(other: Experiment) -> Path:
        done[other.name] = train_run(other, screen, verbose)
        return done[other.name].run

    stands = resolve_collapse(experiment, done[experiment.name].run, seed, screen.say)
    return done.get(stands.name) or train(stands, screen=screen, verbose=verbose)


def train_run(experiment: Experiment, screen: Screen, verbose: bool) -> Trained:
    """Train one run or resume it, whatever comes of its latent."""
    if experiment.data.expanded is None:
        check_cohort_folder(sync.fetch_cohort(experiment.data.cohort))
    if experiment.tracking.experiment is not None:
        tracking_uri(experiment)
    run, experiment, before = _begun(experiment)
    if before is not None and before.finished:
        return _finished(run, experiment, before, screen)
    if before is None and experiment.init_from:
        # A typo is answered before data are prepared.
        try:
            checkpoint_folder(runs.fetch_run(experiment.init_from))
        except InputError as error:
            raise InputError(f"init_from={error}") from None
    if away := check_server(experiment):
        screen.say(away)
    check_resources(experiment.cluster)
    with leased(experiment.location, screen.say) as lease:
        if lease is not None:  # until now another machine may have trained it
            run, experiment, before = _begun(experiment)
            if before is not None and before.finished:
                return _finished(run, experiment, before, screen)
        return _train(experiment, before, lease, screen, verbose)


def _begun(experiment: Experiment) -> tuple[Path, Experiment, Progress | None]:
    """Return a run's folder, its experiment as it was begun, and how far it is; None before."""
    run = runs.fetch_run(experiment.location, missing_ok=True)
    experiment = as_before(run, experiment)
    _check_same(run, experiment)
    return run, experiment, saved_progress(run)


def _finished(run: Path, experiment: Experiment, before: Progress, screen: Screen) -> Trained:
    """Return a run that has ended, and tell MLflow what it lacks of it."""
    _check_checkpoint(run)
    if (run / UNTOLD).is_file():
        names = yaml.safe_load((run / UNTOLD).read_text())
        _tell(run, experiment, find_run(run), names, screen)
    return Trained(run, before.step, before.best, before.step, True)


def _train(
    experiment: Experiment,
    before: Progress | None,
    lease: Lease | None,
    screen: Screen,
    verbose: bool,
) -> Trained:
    """Prepare the data of a run and train it to its end."""
    from ehr_ray.runtime.training.worker import Job
    from ehr_ray.train.numerics import repeatable_products

    if experiment.train.deterministic:  # phrases may be embedded here before it is trained here
        repeatable_products()
    run, family = local(experiment.location), family_of(experiment)
    on_ray = experiment.cluster.most_workers > 0
    with session_of(experiment.cluster, verbose):
        check_resources(experiment.cluster)
        with prepared(experiment, family, on_ray=on_ray, say=screen.passing) as data:
            if before is None:
                experiment = with_phrases(
                    experiment, data.vocabulary, on_ray=on_ray, say=screen.passing
                )
            for line in _trained_on(experiment, data, before):
                screen.say(line)
            run.mkdir(parents=True, exist_ok=True)
            with copies.unsent(run):
                files.write_text(run / "experiment.yaml", to_yaml(experiment))
                tracked = open_run(experiment)
                sync.push(run)
            tracker = Tracker(tracked)
            progress = run / ".progress.jsonl"
            job = Job(experiment, data, run, progress, tracked, lease=lease)
            try:
                with following(progress, screen):
                    fit(job) if on_ray else fit_here(job)
            except BaseException:
                tracker.close("FAILED")
                tracker.flush(5.0)
                raise
            with run_lock(run):  # what is written from here on is not in a store yet
                if on_ray:
                    sync.fetch(run)
                if lease is not None:
                    lease.check()
                records = _write_records(run, experiment, data)
                _tell(run, experiment, tracked, (*artifacts_of(run), *records), screen)
                sync.push(run)
    after = saved_progress(run)
    assert after is not None
    return Trained(run, after.step, after.best, before.step if before else 0, False)


def _trained_on(experiment: Experiment, data: Prepared, before: Progress | None) -> Iterator[str]:
    """Yield what a person should know of a run's data before its first step."""
    # Rows of a task: a patient at each prediction time, and at each of `task.hours`.
    what = "patients" if experiment.task is None else "rows"
    patients = {split: len(data.store(split)) for split in data.blocks}
    if data.weighed is not None:
        yield data.weighed
    yield (
        f"{experiment.name}: {patients['train']} train and {patients['tuning']} tuning {what}, "
        f"{len(data.vocabulary)} codes"
        + (", rows streamed" if data.stream is not None else "")
        + (f", resuming at step {before.step}" if before else "")
    )
    yield from without_labels(experiment, data)
    if not patients["tuning"]:
        yield (
            "no tuning patients: the last weights are kept, and `evaluate` has none to "
            "choose and calibrate on; `ehr-ray ingest --splits 0.8,0.1,0.1` sets some aside"
        )


def artifacts_of(run: Path) -> list[str]:
    """Return what MLflow gets of a finished run; of the checkpoints kept by steps, none."""
    named = [f"checkpoints/{path.name}" for path in sorted((run / "checkpoints").glob("[!0-9]*"))]
    return ["checkpoint", *named, "history.parquet", "experiment.yaml"]


def _tell(
    run: Path,
    experiment: Experiment,
    tracked: Tracked | None,
    names: Sequence[str],
    screen: Screen,
) -> None:
    """Tell MLflow what it lacks of a run that has ended; what it does not take is kept for later.

    A worker that was lost, or a server that was away, leaves reports in the run directory alone.
    """
    if tracked is None:
        return
    untold(run, names)
    if not tracked.run_id:
        try:
            tracked = open_run(experiment)
            sync.push(run / RUN_FILE)
        except ConfigError as error:
            screen.say(f"{error}; the run is whole without")
            return
        if tracked is None:
            return
    tracker = Tracker(tracked)
    tracker.retell(run)
    tracker.artifacts(run, names)
    tracker.close("FINISHED")
    if left := tracker.flush():
        screen.say(f"{left}; the run is whole without, and the same command tells MLflow later")
    else:
        (run / UNTOLD).unlink()


def _check_checkpoint(run: Path) -> None:
    """Raise InputError where the checkpoint of a run that has ended is not what was written."""
    if damage := checkpoint_damage(run):
        raise InputError(
            f"{damage}; the run has ended, so that no more steps mend it: restore it from a copy, "
            f"or remove {run} and train again"
        )


def _write_records(run: Path, experiment: Experiment, data: Prepared) -> list[str]:
    """Write the family's own JSON files of a finished run; return their names."""
    family = get_family(experiment.family)
    if family.files.run_metadata is None:
        return []
    subjects = {split: data.store(split).column("subject_id").tolist() for split in data.blocks}
    found = family.files.run_metadata(dump(experiment), history.read(run), subjects)
    for name, content in found.items():
        files.write_text(run / name, json.dumps(content, indent=1) + "\n")
    return list(found)


def without_labels(experiment: Experiment, data: Prepared) -> list[str]:
    """Return a line on the classes of a task that no row of train has, if there are any."""
    task = experiment.task
    if task is None or task.kind != "classes":
        return []
    seen = set(np.unique(data.store("train").column(LABEL)).astype(int).tolist())
    absent = [repr(name) for place, name in enumerate(task.classes) if place not in seen]
    if not absent:
        return []
    return [
        f"task {task.name}: no row of train is labelled {', '.join(absent)} of task.classes: "
        "nothing is learned of it; correct its name, or drop it"
    ]


def _check_same(run: Path, experiment: Experiment) -> None:
    path = run / "experiment.yaml"
    if not path.is_file() or saved_progress(run) is None:  # refused before it was trained
        return
    changed = [
        change
        for change in changes_since(path, experiment)
        if not change.startswith(FREE_TO_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{run}: holds another experiment ({'; '.join(changed[:4])}); "
            "choose another name, or remove the folder"
        )
