"""MLflow, written in one place: rank 0 logs metrics, the driver parameters and artifacts."""

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import InputError
from ehr_ray.experiment import Experiment, dump
from ehr_ray.runtime.outbox import (
    LIMIT,
    START,
    UPLOAD,
    NotMadeError,
    connected,
    outbox,
    reason,
    refused,
)
from ehr_ray.runtime.tracking_store import (
    SQLITE,
    absolute_tracking,
    check_uri,
    is_remote,
    made_by_one,
    refusal,
    sqlite_file,
    tracking_uri,
)
from ehr_ray.storage import files
from ehr_ray.storage.paths import is_uri
from ehr_ray.train import history
from ehr_ray.train.history import HISTORY

RUN_FILE = "mlflow.yaml"
KEY = "ehr_ray.key"
"""Tag by which a run is found that was made after its training had begun."""
UNTOLD = ".mlflow-untold"
"""Marks a run directory MLflow does not know all of; a YAML list of the artifacts it is to get."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tracked:
    """An MLflow run by the names that find it from any process."""

    uri: str
    run_id: str
    """"" of one that its server, which was away, has not made yet."""
    experiment: str = ""
    """MLflow experiment in which such a run comes to lie."""
    key: str = ""
    """Tag `KEY` of such a run."""


def open_run(
    experiment: Experiment, parent: Tracked | None = None, more: Mapping[str, Any] | None = None
) -> Tracked | None:
    """Return the run's MLflow run, made with its parameters unless it already exists.

    A trial is nested in the run of its search, `parent`, in whose store it lies. `more` are further
    parameters: what a search varies, and how.

    Called by the driver before any worker starts. A server that does not answer is not waited for:
    this process makes the run when it does, and its metrics, which wait, follow. Raises ConfigError
    where one refuses, or does not answer and the run was told to another, and of a file that cannot
    be written.
    """
    if experiment.tracking.experiment is None:
        return None
    uri = parent.uri if parent else tracking_uri(experiment)
    before = find_run(experiment.directory)
    known = before if before is None or absolute_tracking(before.uri) == uri else None
    key = known.key if known and known.key else secrets.token_hex(16)
    waiting = Tracked(uri, "", experiment.tracking.experiment, key)
    made: list[Tracked] = []

    def make(client: Any) -> None:
        with made_by_one(uri):
            made.append(_opened(client, experiment, waiting, before, parent, more or {}))

    with made_by_one(uri):  # a client makes the tables of a file
        check_uri(uri)
    if known is None:
        _note(experiment.directory, waiting)  # which `make` replaces, whenever that is
    if why := outbox(uri).ask(make, START if is_remote(uri) else None):
        moved = known is None and before is not None and before.run_id  # or it was mistyped
        if refused(why) or moved or not is_remote(uri):
            if before is None:
                (experiment.directory / RUN_FILE).unlink(missing_ok=True)
            else:
                _note(experiment.directory, before)
            raise refusal(uri, why) from why
        return known if known is not None and known.run_id else waiting
    return made[0]


def _opened(
    client: Any,
    experiment: Experiment,
    waiting: Tracked,
    before: Tracked | None,
    parent: Tracked | None,
    more: Mapping[str, Any],
) -> Tracked:
    """Find or make the run; called again, after an answer that was lost, it finds what it made.

    The name in the directory is replaced where it is of this run, or of the one `before` it: where
    the server comes late, the directory may be of another run by then.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    uri, output = waiting.uri, experiment.directory.absolute().parent
    output.mkdir(parents=True, exist_ok=True)
    if before is not None and before.run_id and before == find_run(experiment.directory):
        known = before
        try:
            if absolute_tracking(known.uri) == uri and client.get_run(known.run_id):
                client.update_run(known.run_id, status="RUNNING")
                return known
        except MlflowException as error:
            if not refused(error):
                raise
            # else the store was removed: start anew
    beside = None if is_uri(experiment.output) else output
    at = _experiment_id(uri, waiting.experiment, beside)
    run = _by_key(client, at, waiting.key)
    if run is None:
        tags = {KEY: waiting.key}
        tags |= {MLFLOW_PARENT_RUN_ID: run_id(client, parent)} if parent else {}
        run = client.create_run(at, run_name=experiment.name, tags=tags)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
    other = ("search", "tune.", "crossval.")  # verbs that tell of their own section by `more`
    told = {k: v for k, v in flatten(dump(experiment)) if not k.startswith(other)}
    told = {k: v for k, v in {**told, **more}.items() if _name(k) not in run.data.params}
    log_parameters(client, run.info.run_id, told)
    own, now = Tracked(uri, run.info.run_id), find_run(experiment.directory)
    if now is not None and (now.key == waiting.key or now == before):
        _note(experiment.directory, own)
    return own


def _by_key(client: Any, at: str, key: str) -> Any:
    """Return the run of a key in the MLflow experiment of the id `at`, or None."""
    found = client.search_runs([at], f"tags.`{KEY}` = '{key}'", max_results=1)
    return found[0] if found else None


def run_id(client: Any, tracked: Tracked) -> str:
    """Return the id of a run at its server; NotMadeError where it has none of it yet."""
    if tracked.run_id:
        return tracked.run_id
    at = client.get_experiment_by_name(tracked.experiment)
    run = at and _by_key(client, at.experiment_id, tracked.key)
    if not run:
        raise NotMadeError("the run is not made there yet")
    return str(run.info.run_id)


def _note(directory: Path, tracked: Tracked) -> Tracked:
    """Write the name of a directory's run into it."""
    raw = {k: v for k, v in asdict(tracked).items() if v}
    files.write_text(directory / RUN_FILE, yaml.safe_dump(raw, sort_keys=False))
    return tracked


def experiment_id(uri: str, name: str, output: Path | None = None) -> str:
    """Return the id of an MLflow experiment, which is made where there is none of this name.

    Artifacts of one that lies in sqlite go to `mlartifacts` in `output`, else beside the file.
    """
    with made_by_one(uri):
        return _experiment_id(uri, name, output)


def _experiment_id(uri: str, name: str, output: Path | None) -> str:
    place = None
    if uri.startswith(SQLITE):
        store = sqlite_file(uri).absolute().parent
        place = ((output or store) / "mlartifacts").as_uri()
    client = connected(uri)
    found = client.get_experiment_by_name(name)
    return str(
        found.experiment_id if found else client.create_experiment(name, artifact_location=place)
    )


def log_parameters(client: Any, run: str, values: Mapping[str, Any]) -> None:
    """Log parameters, as text that MLflow takes."""
    from mlflow.entities import Param

    params = [Param(_name(name), str(value)[:6000]) for name, value in values.items()]
    for first in range(0, len(params), 100):  # MLflow takes no more at once
        client.log_batch(run, params=params[first : first + 100])


def find_run(directory: Path) -> Tracked | None:
    """Return the MLflow run a run directory belongs to, if it was tracked."""
    note = directory / RUN_FILE
    if not note.is_file():
        return None
    raw = read_yaml(note)
    kinds = ({"uri", "run_id"}, {"uri", "experiment", "key"})
    if set(raw) not in kinds or not all(isinstance(v, str) for v in raw.values()):
        raise InputError(f"{note}: not a uri and a run_id; remove it to track the run anew")
    return Tracked(**{"run_id": "", **raw})


def leave_run(directory: Path, why: str) -> None:
    """End a run directory's MLflow run, tagged `left` with the reason: the next has its own."""
    tracked = find_run(directory)
    if tracked is not None and tracked.run_id:
        tracker = Tracker(tracked)
        tracker.tag("left", why)
        tracker.close("KILLED")
    (directory / RUN_FILE).unlink(missing_ok=True)


def tag_best_trial(search: Tracked, best: Tracked, name: str) -> None:
    """Tag a search's best run, and only it, `best`; the search's own run names it."""
    from mlflow.exceptions import MlflowException

    client = connected(search.uri)
    try:
        own, its = run_id(client, search), run_id(client, best)
        before = client.get_run(own).data.tags.get("best_run_id")
        if before and before != its:
            client.delete_tag(before, "best")
        client.set_tag(its, "best", "true")
        for key, value in (("best_run_id", its), ("best_trial", name)):
            client.set_tag(own, key, value)
    except (MlflowException, NotMadeError) as error:
        log.warning("%s is not tagged the best in MLflow: %s", name, reason(error))


def register(tracked: Tracked, name: str) -> str | None:
    """Make a run's checkpoint a version of a registered model; return the version.

    A run that was registered before keeps its version; None where the store has no registry.
    """
    from mlflow.exceptions import MlflowException

    client = connected(tracked.uri)
    try:
        own = run_id(client, tracked)
        with contextlib.suppress(MlflowException):  # it is there
            client.create_registered_model(name)
        for version in client.search_model_versions(f"name='{name}'"):
            if version.run_id == own:
                return str(version.version)
        source = f"{client.get_run(own).info.artifact_uri}/checkpoint"
        return str(client.create_model_version(name, source, own).version)
    except (MlflowException, NotMadeError) as error:
        log.warning("%s is not registered: %s", name, reason(error))
        return None


class Tracker:
    """Tells MLflow of one run, in its own time: no call waits for a server, or fails with it.

    Calls are made in order by the process's outbox; `flush` waits for them at the end.
    """

    def __init__(self, tracked: Tracked | None) -> None:
        self._tracked = tracked
        self._run_id = ""
        self._known: set[int] | None = None

    def report(self, row: Mapping[str, float]) -> None:
        """Log every metric of a report at its step; one MLflow knows, of before a restart, is not.

        `epoch` comes last: where it is known, so are all others.
        """
        step = int(row["step"])
        values = {k: v for k, v in row.items() if k not in ("step", "epoch")}
        metrics = _metrics({**values, "epoch": row["epoch"]}, step)

        def send(client: Any, run: str) -> None:
            if self._known is None:
                self._known = {m.step for m in client.get_metric_history(run, "epoch")}
            if step not in self._known:
                _log(client, run, metrics)
                self._known.add(step)

        self._put(send)

    def retell(self, run: Path, tables: tuple[str, ...] = (HISTORY,)) -> None:
        """Log the reports that lie in a run directory, those of a step together."""
        rows: dict[int, dict[str, float]] = {}
        for name in tables if self._tracked else ():
            for row in history.read(run, file=name).to_dict("records"):
                told = {str(k): float(v) for k, v in row.items() if v == v}
                rows.setdefault(int(row["step"]), {}).update(told)
        for step in sorted(rows):
            self.report(rows[step])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step."""
        metrics = _metrics(values, step)
        self._put(lambda client, run: _log(client, run, metrics))

    def tag(self, key: str, value: str) -> None:
        """Tag the run."""
        self._put(lambda client, run: client.set_tag(run, key, value))

    def artifacts(self, directory: Path, names: Iterable[str]) -> None:
        """Store files or folders of the run directory, as they are when their turn comes."""
        self._put(lambda client, run: client.get_run(run))  # no file is sent to who is away
        for name in names:
            path = directory / name
            if path.is_dir():
                self._put(lambda c, run, p=path, n=name: c.log_artifacts(run, str(p), n), UPLOAD)
            elif path.is_file():
                self._put(lambda c, run, p=path: c.log_artifact(run, str(p)), UPLOAD)

    def close(self, status: str) -> None:
        """Mark the run FINISHED, FAILED or KILLED."""
        self._put(lambda client, run: client.set_terminated(run, status))

    def flush(self, limit: float = LIMIT) -> str:
        """Wait until MLflow was told all; return "", or one line where it was not."""
        return outbox(self._tracked.uri).flush(limit) if self._tracked else ""

    def _put(self, call: Callable[..., object], patience: float = LIMIT) -> None:
        if (tracked := self._tracked) is not None:

            def send(client: Any) -> None:
                self._run_id = self._run_id or run_id(client, tracked)
                call(client, self._run_id)

            outbox(tracked.uri).put(send, patience)


def untold(run: Path, names: Iterable[str] = ()) -> None:
    """Mark a run directory: MLflow is to get its reports and artifacts of these names."""
    files.write_text(run / UNTOLD, yaml.safe_dump([*names]))


def _metrics(values: Mapping[str, float], step: int) -> list[Any]:
    """Return MLflow's metrics, dated now: told twice they are the same."""
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(_name(name), float(value), now, step) for name, value in values.items()]


def _log(client: Any, run: str, metrics: list[Any]) -> None:
    for first in range(0, len(metrics), 500):  # MLflow takes no more at once
        client.log_batch(run, metrics=metrics[first : first + 500])


def flatten(raw: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of nested mappings."""
    for key, value in raw.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{at}{key}.")
        else:
            yield f"{at}{key}", value


def _name(text: str) -> str:
    """Return the text with what MLflow refuses in names replaced: a pattern of `layers`, say."""
    return "".join(c if c.isalnum() or c in "/_-. " else "_" for c in text)
