"""What waits for MLflow, and who does not wait for it."""

import logging
import socket
import threading

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from ehr_ray.runtime import outbox as module
from ehr_ray.runtime.outbox import NotMadeError, Outbox, answers, outbox, shown

AWAY = MlflowException("HTTPConnectionPool: Connection refused", INTERNAL_ERROR)
NEVER = MlflowException("no such metric", INVALID_PARAMETER_VALUE)


@pytest.fixture
def silent():
    """The URI of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def nobody():
    """The URI of a server that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def box(monkeypatch):
    """An outbox whose calls get a list in place of a client; it pauses for a moment only."""
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.02))
    told = []
    monkeypatch.setattr(module, "connected", lambda _uri: told)
    return Outbox("http://server"), told


def test_calls_are_made_in_order_and_again_until_the_server_answers(box):
    out, told = box
    errors = [AWAY] * 3

    def second(client):
        if errors:
            raise errors.pop()
        client.append(2)

    out.put(lambda client: client.append(1))
    out.put(second)
    out.put(lambda client: client.append(3))
    assert out.flush(60) == ""
    assert told == [1, 2, 3]


def test_what_is_refused_is_told_and_holds_up_nothing(box):
    out, told = box

    def refused(_client):
        raise NEVER

    out.put(refused)
    out.put(lambda client: client.append(1))
    assert out.flush(60) == "MLflow at http://server did not take 1 call: no such metric"
    assert told == [1]
    assert out.flush(60) == ""


def test_a_server_that_stays_away_ends_the_wait_and_loses_no_count(box):
    out, told = box
    away, tried = [True], threading.Event()

    def call(client):
        tried.set()
        if away:
            raise AWAY
        client.append(1)

    for _ in range(3):
        out.put(call)
    assert tried.wait(60)
    assert out.flush(0.1) == "MLflow at http://server did not take 3 calls: connection refused"
    away.clear()
    out.put(call)
    assert out.flush(60) == ""
    assert told == [1]


def test_a_call_is_waited_for_until_it_was_tried_and_made_when_the_server_answers(box):
    out, told = box
    errors = [AWAY]

    def make(client):
        if errors:
            raise errors.pop()
        client.append(1)

    assert out.ask(make, 60) is AWAY
    out.put(lambda client: client.append(2))
    assert out.flush(60) == ""
    assert told == [1, 2]
    assert out.ask(lambda client: client.append(3), 60) is None

    def refused(_client):
        raise NEVER

    assert out.ask(refused, 60) is NEVER
    assert out.flush(60).endswith("did not take 1 call: no such metric")


def test_what_its_maker_has_not_made_is_asked_for_again(box):
    out, told = box
    errors = [NotMadeError("not yet")] * 2

    def call(client):
        if errors:
            raise errors.pop()
        client.append(1)

    out.put(call)
    assert out.flush(60) == ""
    assert told == [1]


def test_no_more_is_kept_than_fits(box, monkeypatch):
    out, told = box
    monkeypatch.setattr(module, "MOST", 2)
    begun, go = threading.Event(), threading.Event()

    def slow(client):
        begun.set()
        assert go.wait(60)
        client.append(0)

    out.put(slow)
    assert begun.wait(60)
    for number in (1, 2):
        out.put(lambda client, n=number: client.append(n))
    go.set()
    assert out.flush(60).startswith("MLflow at http://server did not take 1 call")
    assert told == [0, 1]


def test_nobody_waits_for_a_server_that_never_answers(silent):
    out = outbox(silent)
    assert outbox(silent) is out
    for _ in range(3):
        out.put(lambda client: client.get_run("a"))
    assert out.flush(0.2) == f"MLflow at {silent} did not take 3 calls: no answer"


def test_whether_a_server_answers_is_known_soon_and_without_warnings(silent, nobody, caplog):
    with caplog.at_level(logging.WARNING):
        assert answers(silent, 0.5) == "no answer in 0.5 seconds"
        assert answers(nobody) == "connection refused"
    assert [r for r in caplog.records if r.name.startswith(("urllib3", "mlflow"))] == []
    assert answers("sqlite:////nowhere/mlflow.db") == ""


def test_the_password_in_a_uri_is_not_repeated():
    assert shown("http://me:hush@server:5000/x") == "http://server:5000/x"
    assert shown("http://server") == "http://server"
