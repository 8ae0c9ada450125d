"""Calls to MLflow, made by a thread of their own: no training waits for a server or ends by one.

Calls are made in order, each again until the server answers. What a process does not deliver before
its end lies in the run directory all the same, from where the next call of the command tells it.
"""

import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

from ehr_ray.errors import one_line

START: Final = 5.0
"""Seconds a process waits at its start for a server to answer, then goes on without."""
LIMIT: Final = 20.0
"""Seconds a process waits at its end for a server that does not answer."""
SOON: Final = 2.0
"""Seconds it waits where the server had not answered the last time."""
UPLOAD: Final = 300.0
"""Seconds it waits there for the server to take one file, once it has answered."""
MOST: Final = 10_000
"""Calls kept; what comes after them is left to the run directory."""
FULL: Final = "too many reports waited"
PAUSES: Final = (0.5, 15.0)
"""Seconds before a call is made again: at first, and at most, twice as long each time."""
log = logging.getLogger(__name__)


class NotMadeError(Exception):
    """What a call is about is not at the server yet, as its maker waits for an answer too."""


class Call(NamedTuple):
    """What is told to a server."""

    function: Callable[[Any], object]
    """Takes the client."""
    patience: float
    """Seconds it may take at the end of the process."""


class Outbox:
    """The calls of this process to one tracking server (or file), and the thread that makes them.

    A call is repeated whole, so it must do no harm twice.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._waiting: deque[Call] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._reason = ""
        self._lost = 0
        self._given_up = False
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    def put(self, function: Callable[[Any], object], patience: float = LIMIT) -> bool:
        """Make a call when those before it are made; returns at once, False where too many wait."""
        with self._changed:
            kept = len(self._waiting) < MOST
            if kept:
                self._waiting.append(Call(function, patience))
            else:
                self._lost, self._reason = self._lost + 1, FULL
            self._changed.notify_all()
        return kept

    def ask(self, function: Callable[[Any], object], limit: float | None) -> Exception | None:
        """Make a call in its turn and wait until it was tried; return None, or why it was in vain.

        One that is refused is not made again, any other is, as those of `put`. After `limit`
        seconds the answer is a TimeoutError.
        """
        tried: Future[Exception | None] = Future()

        def call(client: Any) -> None:
            try:
                function(client)
            except Exception as error:
                if not tried.done():
                    tried.set_result(error)
                raise
            if not tried.done():
                tried.set_result(None)

        if not self.put(call):
            return TimeoutError(FULL)
        try:
            why = tried.result(limit)
        except TimeoutError:
            why = TimeoutError(f"no answer in {limit:g} seconds")
        if why is not None and not refused(why):
            self.give_up()
        return why

    def give_up(self) -> None:
        """Note that the server is away: until it takes a call nobody waits for it for long."""
        self._given_up = True

    def flush(self, limit: float = LIMIT) -> str:
        """Wait until all calls are made; return "", or one line on those that are not.

        Gives up once the server has taken nothing for `limit` seconds (for two, where it had not
        at the last time either); what waits is dropped.
        """
        with self._changed:
            limit = min(limit, SOON) if self._given_up else limit
            self._ending = True
            self._changed.notify_all()
            before, since = len(self._waiting), time.monotonic()
            while self._waiting:
                now = time.monotonic()
                if len(self._waiting) < before:
                    before, since = len(self._waiting), now
                first = self._waiting[0].patience
                patience = limit if self._given_up or self._reason else max(limit, first)
                if now >= since + patience:
                    self._given_up = True
                    break
                self._changed.wait(since + patience - now)
            self._lost += len(self._waiting)
            self._waiting.clear()
            self._ending, lost, self._lost = False, self._lost, 0
        if not lost:
            return ""
        calls = f"{lost} calls" if lost > 1 else "1 call"
        return f"MLflow at {shown(self._uri)} did not take {calls}: {self._reason or 'no answer'}"

    def _ends(self, call: Call) -> bool:
        """Whether to try again at once: for the last time, or another call as this was dropped."""
        return self._ending or not self._waiting or self._waiting[0] is not call

    def _work(self) -> None:
        pause, client = PAUSES[0], None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                call = self._waiting[0]
            try:
                client = client or connected(self._uri)
                call.function(client)
            except Exception as error:
                if not refused(error):
                    with self._changed:
                        self._reason = reason(error)
                        self._changed.wait_for(functools.partial(self._ends, call), pause)
                        pause = PAUSES[0] if self._ends(call) else min(2 * pause, PAUSES[1])
                    if self._ending:
                        time.sleep(PAUSES[0])
                    continue
                told = reason(error)
            else:
                told = ""
            pause = PAUSES[0]
            with self._changed:
                self._given_up = False
                self._lost += bool(told)
                self._reason = told or (self._reason if self._lost else "")
                if self._waiting and self._waiting[0] is call:  # else it was dropped
                    self._waiting.popleft()
                self._changed.notify_all()


@functools.cache
def outbox(uri: str) -> Outbox:
    """Return the outbox of this process for a tracking URI."""
    return Outbox(uri)


def connected(uri: str) -> Any:
    """Return an MLflow client that tries a request once more, not for minutes, without a word."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from mlflow import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def answers(uri: str, seconds: float = 15.0) -> str:
    """Return "" where a server answers within `seconds`, else why not; files always answer."""
    error = problem(uri, seconds)
    return reason(error) if error else ""


def problem(uri: str, seconds: float) -> Exception | None:
    """Return why a server does not answer within `seconds`, None where it does, and of files."""
    if not uri.startswith(("http://", "https://")):
        return None
    found: list[Exception | None] = []

    def ask() -> None:
        try:
            connected(uri).search_experiments(max_results=1)
            found.append(None)
        except Exception as error:
            found.append(error)

    connected(uri)  # imports what it needs, which counts as none of the server's time
    thread = threading.Thread(target=ask, name="mlflow", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else TimeoutError(f"no answer in {seconds:g} seconds")


def refused(error: Exception) -> bool:
    """Whether a server answered that it will never take this, so that asking again is in vain."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    if isinstance(error, NotMadeError | TimeoutError):
        return False
    if not isinstance(error, MlflowException):
        return not isinstance(error, RequestException)  # a full disk, or a defect of ours
    status = error.get_http_status_code()
    return 400 <= status < 500 and status not in (408, 429)


def reason(error: Exception) -> str:
    """Return what a person needs of an error of MLflow, in one line."""
    text = one_line(str(error))
    for sign, said in (
        ("refused", "connection refused"),
        ("timed out", "no answer"),
        ("resolve", "no such host"),
        ("closed connection", "no answer"),
        ("Connection aborted", "no answer"),
        ("Max retries exceeded", "no connection"),
    ):
        if sign in text:
            return said
    return text[:200] or type(error).__name__


def shown(uri: str) -> str:
    """Return a URI without the password it may hold."""
    scheme, mark, rest = uri.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
