"""MLflow runs of verbs that train nothing: what they were given, counted and wrote.

Such a run is made when the verb has ended, so that no server is waited for before, and none that is
away stops a verb: one line tells of it.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from ehr_ray.config.sections import TrackingConfig
from ehr_ray.errors import InputError, UserError
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.outbox import answers, connected, reason, shown
from ehr_ray.runtime.tracking import Tracked, Tracker, experiment_id, find_run, log_parameters
from ehr_ray.runtime.tracking_store import SQLITE, absolute_tracking, sqlite_file

VERB = "ehr_ray.verb"
"""Tag of the run: the verb's name."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destination:
    """Where a verb's MLflow run comes to lie."""

    uri: str
    experiment: str
    parent: str | None = None
    """Id of the training's run it is nested in."""


@dataclass
class VerbRecord:
    """What MLflow is told of a verb once it has ended."""

    parameters: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: list[tuple[Path, Sequence[str]]] = field(default_factory=list)
    """Folders, and the names in them."""


def of_training(run: Path, experiment: Experiment) -> Destination | None:
    """Return where a trained run is tracked; None if it is not, or its store is no longer there.

    `MLFLOW_TRACKING_URI` wins, as for the training. A run that was moved has no sqlite file made
    anew at its old place.
    """
    if experiment.tracking.experiment is None:
        return None
    tracked, asked = find_run(run), os.environ.get("MLFLOW_TRACKING_URI")
    uri = asked or (tracked.uri if tracked else experiment.tracking.uri)
    if uri is None:
        return None
    uri = absolute_tracking(uri)
    if not asked and uri.startswith(SQLITE) and not sqlite_file(uri).is_file():
        return None
    parent = tracked.run_id if tracked and absolute_tracking(tracked.uri) == uri else ""
    return Destination(uri, experiment.tracking.experiment, parent or None)


def asked_for(uri: str | None, experiment: str | None) -> Destination | None:
    """Return where `--tracking-uri`, else `MLFLOW_TRACKING_URI`, tells to track; None: nowhere."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        name = experiment or TrackingConfig().experiment
        assert name is not None
        return Destination(absolute_tracking(uri), name)
    if experiment:
        raise InputError(
            f"--experiment {experiment}: no MLflow to track in; give --tracking-uri URI too, or "
            "set MLFLOW_TRACKING_URI"
        )
    return None


@contextlib.contextmanager
def tracked_verb(
    destination: Destination | None, verb: str, subject: str, parameters: Mapping[str, Any]
) -> Iterator[VerbRecord]:
    """Yield a record to be filled, which MLflow is told after the block; nothing without a place.

    `subject` is what the verb is about, for the run's name. A block that fails leaves a FAILED
    run, but for a mistake of the caller. MLflow's own failure is one line.
    """
    record, started = VerbRecord(dict(parameters)), int(time.time() * 1000)
    status = "FAILED"
    try:
        yield record
        status = "FINISHED"
    except UserError:
        destination = None
        raise
    finally:
        if destination is not None:
            name = f"{verb} {subject}"
            if left := _told(destination, verb, name, record, started, status):
                log.warning("%s; what was written is whole without", left)


def _told(
    place: Destination, verb: str, name: str, record: VerbRecord, started: int, status: str
) -> str:
    """Make the run, and return "" or a line on what MLflow did not take."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
    from requests import RequestException

    if why := answers(place.uri):
        return f"MLflow at {shown(place.uri)} does not answer ({why})"
    tags = {VERB: verb} | ({MLFLOW_PARENT_RUN_ID: place.parent} if place.parent else {})
    try:
        key = experiment_id(place.uri, place.experiment)
        client = connected(place.uri)
        run = client.create_run(key, start_time=started, run_name=name, tags=tags).info.run_id
        given = {k: shown(str(v)) for k, v in record.parameters.items() if v is not None}
        log_parameters(client, run, given)
    except (MlflowException, RequestException, OSError) as error:
        return f"MLflow at {shown(place.uri)} has no run of this ({reason(error)})"
    tracker = Tracker(Tracked(place.uri, run))
    tracker.metrics({k: v for k, v in record.metrics.items() if isfinite(v)})
    for folder, names in record.artifacts:
        tracker.artifacts(folder, names)
    tracker.close(status)
    return tracker.flush()
