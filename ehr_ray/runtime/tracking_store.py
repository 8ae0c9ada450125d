"""Where MLflow is: a server, or an sqlite file, by default beside what an experiment writes."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from ehr_ray.config.locations import absolute_uri
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.outbox import START, connected, outbox, problem, reason, refused, shown
from ehr_ray.storage import files
from ehr_ray.storage.copies import held
from ehr_ray.storage.paths import is_uri

STORE = "mlflow.db"
SQLITE = ("sqlite:", "sqlite+")


def tracking_uri(experiment: Experiment) -> str:
    """Return where an experiment is tracked; ConfigError where that cannot be beside its output.

    A relative path, in the environment or behind `sqlite:///`, means the working folder.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or experiment.tracking.uri
    if uri is None and is_uri(experiment.output):
        raise ConfigError(
            f"output={experiment.output}: MLflow's sqlite cannot lie in a store; name a server by "
            "MLFLOW_TRACKING_URI or tracking.uri, or set tracking.experiment=null"
        )
    return (
        absolute_tracking(uri)
        if uri
        else sqlite_uri(experiment.directory.absolute().parent / STORE)
    )


def sqlite_uri(path: Path) -> str:
    """Return the URI of an sqlite file, whatever its folder is called."""
    from sqlalchemy.engine import URL, make_url

    plain = f"sqlite:///{path}"
    if make_url(plain).database == str(path):
        return plain
    # Of `?` and `%` SQLAlchemy keeps what sqlite itself decodes. The driver is named since MLflow
    # makes a folder of whatever follows `sqlite:///`.
    file = URL.create("sqlite+pysqlite", database=f"file:{quote(str(path))}", query={"uri": "true"})
    return file.render_as_string()


def sqlite_file(uri: str) -> Path:
    """Return the file of an sqlite URI, relative as it is there."""
    from sqlalchemy.engine import make_url

    name = make_url(uri).database or ""
    return Path(unquote(name.removeprefix("file:")) if name.startswith("file:") else name)


def absolute_tracking(uri: str) -> str:
    """Return a tracking URI that holds in another working folder."""
    if not uri.startswith(SQLITE):
        return absolute_uri(uri)
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    if not url.database or url.database.startswith(("/", ":", "file:")):
        return uri
    path = Path(url.database).absolute()
    return url.set(database=str(path)).render_as_string() if url.query else sqlite_uri(path)


@contextlib.contextmanager
def made_by_one(uri: str) -> Iterator[None]:
    """Hold an sqlite store: of two processes that make its tables at once both may crash.

    A new one gets its name with all its tables: MLflow refuses one that a kill has left with some.
    """
    with contextlib.ExitStack() as stack:
        if uri.startswith(SQLITE):
            file = sqlite_file(uri).absolute()
            file.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # who has no folder for locks goes without
                stack.enter_context(held(file))
            if not file.name.startswith(":") and not file.exists():  # `:memory:` is no file
                _make_store(uri, file)
        yield


def _make_store(uri: str, file: Path) -> None:
    """Make the sqlite file of a URI whole; ConfigError where MLflow cannot."""
    from mlflow.exceptions import MlflowException

    files.remove_abandoned([file])
    try:
        with files.first_file(file) as partial:  # of a shared disk others have locks of their own
            connected(sqlite_uri(partial))
    except MlflowException as error:
        raise refusal(uri, error) from error


def check_server(experiment: Experiment) -> str:
    """Return "", or one line where the server that is to track does not answer in some seconds.

    Raises ConfigError where it refuses, which waiting does not mend, or the URI is none.
    """
    if experiment.tracking.experiment is None:
        return ""
    uri = tracking_uri(experiment)
    if uri.startswith(SQLITE):
        return ""
    check_uri(uri)
    why = problem(uri, START)
    if why is None:
        return ""
    if refused(why):
        raise refusal(uri, why) from why
    outbox(uri).give_up()
    return (
        f"MLflow at {shown(uri)} does not answer ({reason(why)}): {experiment.name} goes on "
        "without, and what it is to be told waits until it does, or for the same command later"
    )


def is_remote(uri: str) -> bool:
    """Whether a server is named, which may be away for a while."""
    return uri.startswith(("http://", "https://", "databricks"))


def check_uri(uri: str) -> None:
    """Raise ConfigError where MLflow knows no such kind of place."""
    from mlflow.exceptions import MlflowException

    try:
        connected(uri)
    except MlflowException as error:
        raise refusal(uri, error) from error


def refusal(uri: str, why: Exception) -> ConfigError:
    """Return the error of a place that does not take what it is told."""
    said = reason(why).replace(uri, shown(uri))
    return ConfigError(
        f"{shown(uri)}: MLflow cannot be told there ({said}); correct MLFLOW_TRACKING_URI "
        "or tracking.uri, or set tracking.experiment=null"
    )
