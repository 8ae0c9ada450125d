"""Materialise the model-ready dataset of an experiment."""

from dataclasses import replace
from pathlib import Path

from ehr_ray.errors import ConfigError, InputError
from ehr_ray.events.patients import read_patients, splits_of
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.screen import Screen
from ehr_ray.runtime.session import session_of
from ehr_ray.storage import copies, sync
from ehr_ray.storage.paths import local
from ehr_ray.train.task import family_of


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
    if experiment.data.mode == "stream":
        raise ConfigError("data.mode=stream: keeps nothing to prepare; use data.mode=cache")
    experiment = replace(experiment, data=replace(experiment.data, mode="cache"))
    family = family_of(experiment)
    if export is not None and family.files.export is None:
        raise InputError(f"--export {export}: family {family.name} has no file format of its own")
    on_ray = experiment.cluster.most_workers > 0
    with (
        session_of(experiment.cluster, verbose),
        prepared(experiment, family, on_ray=on_ray, say=screen.passing) as data,
    ):
        lines = [
            f"{split}: {len(data.store(split)):,} patients in {len(paths)} files, {paths[0].parent}"
            for split, paths in data.blocks.items()
            if paths
        ]
        if export is not None:
            with copies.unsent(export):
                lines.append(_export(experiment, data.vocabulary, local(export)))
                sync.push(export)
        return lines


def _export(experiment: Experiment, vocabulary: Vocabulary, path: Path) -> str:
    """Write the patients of all splits, one after the other, to the family's own format."""
    family = family_of(experiment)
    assert family.files.export is not None
    shards = splits_of(sync.fetch_cohort(experiment.data.cohort))
    patients = (
        patient
        for paths in shards.values()
        for shard in paths
        for patient in read_patients(shard, vocabulary)
    )
    count = family.files.export(patients, experiment.model, vocabulary, path)
    return f"{path}: {count:,} patients ({', '.join(shards)})"
