"""An experiment to a trained run: prepare the data, train by Ray Train, keep the directory."""

import json
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ehr_ray import disk
from ehr_ray.config import Experiment, differences, dump, read_yaml, to_yaml
from ehr_ray.errors import ConfigError, InputError, RoomError, RunError, UserError
from ehr_ray.events.patients import read_patients, splits_of
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.places import absolute, local
from ehr_ray.registry import get_family
from ehr_ray.runtime import storage
from ehr_ray.runtime.datasets import Prepared, prepared
from ehr_ray.runtime.phrases import as_before, with_phrases
from ehr_ray.runtime.progress import Screen, following
from ehr_ray.runtime.session import check_resources, session
from ehr_ray.runtime.tracking import Tracker, open_run, tracking_uri
from ehr_ray.train import history
from ehr_ray.train.checkpoint import checkpoint_damage, checkpoint_folder, saved_progress
from ehr_ray.train.task import family_of
from ehr_ray.workers import ClusterConfig

FREE_TO_CHANGE = ("cluster.", "tracking.", "evaluation.", "search", "tune.", "data.cache")
"""Where a run may differ from the one it resumes: none of these changes its numbers."""


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
    screen = screen or Screen()
    done = {experiment.name: _train(experiment, screen, verbose)}
    from ehr_ray.runtime.fallback import standing

    def seed(other: Experiment) -> Path:
        done[other.name] = _train(other, screen, verbose)
        return done[other.name].run

    stands = standing(experiment, done[experiment.name].run, seed, screen.say)
    return done.get(stands.name) or train(stands, screen=screen, verbose=verbose)


def _train(experiment: Experiment, screen: Screen, verbose: bool) -> Trained:
    from ehr_ray.runtime.worker import Job

    # Stored as an absolute path, so that the run is evaluated from any folder.
    cohort = absolute(experiment.data.cohort)
    if not storage.fetch(cohort).is_dir():
        raise InputError(f"data.cohort={cohort}: no such folder; make it with `ehr-ray ingest`")
    experiment = replace(experiment, data=replace(experiment.data, cohort=cohort))
    if experiment.tracking.experiment is not None:
        tracking_uri(experiment)
    run = storage.fetch_run(experiment.place, missing_ok=True).absolute()
    family = family_of(experiment)
    experiment = as_before(run, experiment)
    _check_same(run, experiment)
    before = saved_progress(run)
    if before is not None and before.finished:
        _check_checkpoint(run)
        return Trained(run, before.step, before.best, before.step, True)
    if before is None and experiment.init_from:
        # A typo is answered before data are prepared.
        checkpoint_folder(storage.fetch_run(experiment.init_from))
    check_resources(experiment.cluster)
    on_ray = experiment.cluster.most_workers > 0
    with _session(experiment.cluster, verbose, on_ray):
        check_resources(experiment.cluster)
        with prepared(experiment, family, on_ray=on_ray, say=screen.passing) as data:
            if before is None:
                experiment = with_phrases(
                    experiment, data.vocabulary, on_ray=on_ray, say=screen.passing
                )
            # Rows of a task: a patient at each prediction time, and at each of `task.hours`.
            what = "patients" if experiment.task is None else "rows"
            patients = {split: len(data.store(split)) for split in data.blocks}
            screen.say(
                f"{run.name}: {patients['train']} train and {patients['tuning']} tuning {what}, "
                f"{len(data.vocabulary)} codes"
                + (f", resuming at step {before.step}" if before else "")
            )
            run.mkdir(parents=True, exist_ok=True)
            disk.write_text(run / "experiment.yaml", to_yaml(experiment))
            tracked = open_run(experiment)
            storage.push(run)
            tracker = Tracker(tracked)
            progress = run / ".progress.jsonl"
            job = Job(experiment, data, run, progress, tracked)
            try:
                with following(progress, screen):
                    fit(job) if on_ray else fit_here(job)
            except BaseException:
                tracker.close("FAILED")
                raise
            if on_ray:
                storage.fetch(run)
            records = _write_records(run, experiment, data)
            tracker.artifacts(run, ("checkpoint", "history.parquet", "experiment.yaml", *records))
            tracker.close("FINISHED")
            storage.push(run)
    after = saved_progress(run)
    assert after is not None
    return Trained(run, after.step, after.best, before.step if before else 0, False)


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
    if family.records is None:
        return []
    subjects = {split: data.store(split).column("subject_id").tolist() for split in data.blocks}
    found = family.records(dump(experiment), history.read(run), subjects)
    for name, content in found.items():
        disk.write_text(run / name, json.dumps(content, indent=1) + "\n")
    return list(found)


def _session(cluster: ClusterConfig, verbose: bool, on_ray: bool) -> Any:
    import contextlib

    return session(cluster.address, verbose=verbose) if on_ray else contextlib.nullcontext()


def _check_same(run: Path, experiment: Experiment) -> None:
    path = run / "experiment.yaml"
    if not path.is_file() or saved_progress(run) is None:  # refused before it was trained
        return
    changed = [
        change
        for change in differences(read_yaml(path), dump(experiment))
        if not change.startswith(FREE_TO_CHANGE)
    ]
    if changed:
        raise ConfigError(
            f"{run}: holds another experiment ({'; '.join(changed[:4])}); "
            "choose another name, or remove the folder"
        )


def fit_here(job: Any) -> None:
    """Train in this process."""
    import torch

    from ehr_ray.runtime.worker import train_here
    from ehr_ray.train.backend import LocalBackend

    torch.set_num_threads(max(1, int(job.experiment.cluster.cpus_per_worker)))
    train_here(job, LocalBackend())


def fit(job: Any, callbacks: Sequence[Any] = ()) -> None:
    """Run the workers until they end, through losses as long as the run goes on between them."""
    import ray.exceptions
    import ray.train
    from ray.train import LoggingConfig, RunConfig, ScalingConfig

    from ehr_ray.runtime.recovery import (
        Patience,
        cause,
        failure_config,
        last_line,
        no_room,
        too_many,
    )
    from ehr_ray.runtime.room import Trainer
    from ehr_ray.runtime.worker import check_share, sent, train_worker

    cluster = job.experiment.cluster
    least, most = cluster.least_workers, cluster.most_workers
    if least < most:
        check_share(job, most)
    resources = {"CPU": cluster.cpus_per_worker}
    if cluster.gpus_per_worker:
        resources["GPU"] = cluster.gpus_per_worker
    lost = 0
    while True:
        before = _saved_step(job.run)
        with tempfile.TemporaryDirectory(prefix="ehr_ray-") as scratch:
            trainer = Trainer(
                train_worker,
                train_loop_config=sent(job),
                scaling_config=ScalingConfig(
                    num_workers=most if least == most else (least, most),
                    use_gpu=bool(cluster.gpus_per_worker),
                    resources_per_worker=resources,
                    elastic_resize_monitor_interval_s=cluster.resize_seconds,
                ),
                # What is durable lives in the run directory; Ray's own bookkeeping is thrown away.
                run_config=RunConfig(
                    name=uuid.uuid4().hex,
                    storage_path=scratch,
                    failure_config=failure_config(cluster),
                    callbacks=[Patience(cluster.max_failures), *callbacks],
                    logging_config=LoggingConfig(log_level="ERROR"),
                ),
            )
            try:
                result = trainer.fit()
            except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
                # Ray's controller itself is lost, with the workers it owns.
                lost = 1 if _saved_step(job.run) > before else lost + 1
                if lost > cluster.max_failures:
                    text = f"{last_line(error)}{too_many(lost, cluster.max_failures)}"
                    raise RunError(f"{job.run.name}: {text}") from error
                continue
            except ray.train.TrainingFailedError as error:
                if no_room(error) and _saved_step(job.run) > before:
                    continue  # it had room for a while, and waits again
                kind = RoomError if no_room(error) else RunError
                raise kind(f"{job.run.name}: {cause(error, cluster)}") from error
            _raise_returned(result.return_value)
            return


def _saved_step(run: Path) -> int:
    progress = saved_progress(run)
    return progress.step if progress else 0


def _raise_returned(value: Mapping[str, str] | None) -> None:
    known = (UserError, ConfigError, InputError, RunError, RoomError)
    kinds = {kind.__name__: kind for kind in known}
    if value and value["error"]:
        raise kinds.get(value["kind"], RunError)(value["error"])


def prepare(
    experiment: Experiment,
    screen: Screen,
    *,
    export: str | Path | None = None,
    verbose: bool = False,
) -> list[str]:
    """Make the model-ready dataset of an experiment and keep it; return what there is.

    `export` is a file to write all patients to besides, in the family's own format.
    """
    if experiment.data.cache == "memory":
        raise ConfigError("data.cache=memory: keeps nothing to prepare; use data.cache=disk")
    family = family_of(experiment)
    on_ray = experiment.cluster.most_workers > 0
    with (
        _session(experiment.cluster, verbose, on_ray),
        prepared(experiment, family, on_ray=on_ray, say=screen.passing) as data,
    ):
        lines = [
            f"{split}: {len(data.store(split)):,} patients in {len(paths)} files, {paths[0].parent}"
            for split, paths in data.blocks.items()
            if paths
        ]
        if export is not None:
            lines.append(_export(experiment, data.vocabulary, local(export)))
            storage.push(export)
        return lines


def _export(experiment: Experiment, vocabulary: Vocabulary, path: Path) -> str:
    """Write the patients of all splits, one after the other, to the family's own format."""
    family = family_of(experiment)
    if family.export is None:
        raise InputError(f"--export {path}: family {family.name} has no file format of its own")
    shards = splits_of(experiment.cohort)
    patients = (
        patient
        for paths in shards.values()
        for shard in paths
        for patient in read_patients(shard, vocabulary)
    )
    count = family.export(patients, experiment.model, vocabulary, path)
    return f"{path}: {count:,} patients ({', '.join(shards)})"
