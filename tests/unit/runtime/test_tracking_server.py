"""Trainings beside an MLflow server that goes, comes back, or never was."""

import contextlib
import http.server
import os
import signal
import socket
import threading
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from mlflow import MlflowClient
from waiting import wait_until

from ehr_ray.cli.main import main
from ehr_ray.commands.train.command import train
from ehr_ray.experiment import load
from ehr_ray.runtime import tracking, tracking_store
from ehr_ray.runtime.tracking import UNTOLD, Tracker, find_run
from ehr_ray.train import history

CONFIG = Path(__file__).parents[3] / "configs" / "tiny" / "set_vae.yaml"


@pytest.fixture
def tracked(synthetic_cohort, tmp_path):
    """Ten reports of a tiny model in this process: tracked(name)."""

    def make(name):
        settings = [
            f"data.cohort={synthetic_cohort}",
            f"output={tmp_path / 'runs'}",
            f"name={name}",
        ]
        settings += ["cluster.num_workers=0", "train.max_steps=10", "train.report_steps=1"]
        return load(CONFIG, [*settings, "train.max_epochs=10", "tracking.experiment=tests"])

    return make


@pytest.fixture
def at_report(monkeypatch):
    """Call a function as a step is reported: at_report({3: mlflow_server.kill})."""
    report, seen = Tracker.report, set()

    def plan(hooks):
        def reported(self, row):
            report(self, row)
            step = int(row["step"])
            if step in hooks and step not in seen:
                seen.add(step)
                hooks[step]()

        monkeypatch.setattr(Tracker, "report", reported)

    return plan


@pytest.fixture
def impatient(monkeypatch):
    """At its end a run waits a second, not twenty, for a server that stays away all the while."""
    flush = Tracker.flush
    monkeypatch.setattr(Tracker, "flush", lambda self, limit=1.0: flush(self, limit))


class Gate:
    """A way to a server. While it is shut it takes requests and passes neither these nor answers.

    Who waits for one is let go at last, which `gave_up` tells.
    """

    def __init__(self, uri, guard=600):
        self._port, self._guard, self._opened = urlsplit(uri).port, guard, threading.Event()
        self._opened.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.asked, self.gave_up = threading.Event(), False
        threading.Thread(target=self._accept, daemon=True).start()

    def shut(self):
        self._opened.clear()

    def open(self):
        self._opened.set()

    def close(self):
        self.open()
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        with client, socket.create_connection(("127.0.0.1", self._port)) as server:
            back = threading.Thread(target=self._pass, args=(server, client), daemon=True)
            back.start()
            self._pass(client, server, self.asked.set)
            back.join()

    def _pass(self, source, sink, waits=lambda: None):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not self._opened.is_set():
                    waits()
                if not self._opened.wait(self._guard):
                    self.gave_up = True
                    self.open()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def gate(mlflow_server, monkeypatch):
    """The way to the server that a training takes; its requests may last as long as they like."""
    way = Gate(mlflow_server.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", way.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "36000")
    yield way
    way.close()


@pytest.fixture
def askers(monkeypatch):
    """The names of the threads that ask a server, a request each."""
    send, names = requests.Session.send, []

    def noted(self, *args, **kwargs):
        names.append(threading.current_thread().name)
        return send(self, *args, **kwargs)

    monkeypatch.setattr(requests.Session, "send", noted)
    return names


def told(server, run):
    """Return what MLflow knows of a run: its steps, its status and the names of its artifacts."""
    client, known = MlflowClient(server.uri), find_run(run).run_id
    steps = [m.step for m in client.get_metric_history(known, "epoch")]
    losses = [m.step for m in client.get_metric_history(known, "train/objective")]
    assert steps == losses
    artifacts = {file.path for file in client.list_artifacts(known)}
    return steps, client.get_run(known).info.status, artifacts


def test_a_server_that_goes_and_comes_back_is_told_all(mlflow_server, tracked, at_report, askers):
    """Meanwhile a thread of its own asks for it again and again, and no report does."""

    def goes():
        mlflow_server.kill()
        askers.clear()

    def comes():
        wait_until(lambda: askers)
        assert {*askers} == {"mlflow"}
        mlflow_server.start()

    at_report({3: goes, 7: comes})
    run = train(tracked("returns")).run
    assert len(history.read(run)) == 10
    steps, status, artifacts = told(mlflow_server, run)
    assert steps == list(range(1, 11))
    assert status == "FINISHED"
    assert {"checkpoint", "history.parquet", "experiment.yaml"} <= artifacts
    assert not (run / UNTOLD).exists()


def test_a_server_that_hangs_is_told_when_it_answers_again(mlflow_server, tracked, at_report):
    hooks = {3: signal.SIGSTOP, 8: signal.SIGCONT}
    at_report({step: partial(mlflow_server.signal, sign) for step, sign in hooks.items()})
    steps, status, _ = told(mlflow_server, train(tracked("hangs")).run)
    assert (steps, status) == (list(range(1, 11)), "FINISHED")


def test_no_report_waits_for_a_server_that_hangs(gate, tracked, at_report):
    """One that waited would wait until the server answers, which it does after these reports."""

    def answers_again():
        wait_until(gate.asked.is_set)  # something has been told it since it hangs
        gate.open()

    at_report({3: gate.shut, 9: answers_again})
    steps, status, _ = told(gate, train(tracked("waits")).run)
    assert not gate.gave_up
    assert (steps, status) == (list(range(1, 11)), "FINISHED")


def test_a_server_that_stays_away_is_told_by_the_same_command_later(
    mlflow_server, tracked, at_report, impatient, capsys
):
    at_report({4: mlflow_server.kill})
    experiment = tracked("later")
    trained = train(experiment)
    said = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert len(said) == 1
    assert said[0].startswith(f"MLflow at {mlflow_server.uri} did not take ")
    assert said[0].endswith(": connection refused; the run is whole without, and the same "
                            "command tells MLflow later")  # fmt: skip
    assert (trained.run / "checkpoint" / "model.safetensors").is_file()
    assert (trained.step, len(history.read(trained.run))) == (10, 10)
    mlflow_server.start()
    assert train(experiment).already_finished
    steps, status, artifacts = told(mlflow_server, trained.run)
    assert (steps, status) == (list(range(1, 11)), "FINISHED")
    assert "checkpoint" in artifacts
    assert not (trained.run / UNTOLD).exists()


@pytest.mark.parametrize("kind", ["silent", "nobody"])
def test_a_server_that_is_away_at_the_start_stops_nothing_and_is_told_later(
    kind, mlflow_server, tracked, capsys, monkeypatch
):
    experiment = tracked(f"begins_{kind}")
    mlflow_server.signal(signal.SIGSTOP) if kind == "silent" else mlflow_server.kill()
    with monkeypatch.context() as patch:  # five seconds otherwise, though none would be enough
        for module in (tracking, tracking_store):
            patch.setattr(module, "START", 1.0)
        trained = train(experiment)
    said = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    why = "no answer" if kind == "silent" else "connection refused"
    assert len(said) == 2, said
    assert said[0].startswith(f"MLflow at {mlflow_server.uri} does not answer ({why}")
    assert said[1].endswith("the same command tells MLflow later")
    assert (trained.step, len(history.read(trained.run))) == (10, 10)
    assert find_run(trained.run).run_id == ""
    mlflow_server.signal(signal.SIGCONT) if kind == "silent" else mlflow_server.start()
    assert train(experiment).already_finished
    assert told_once(mlflow_server, trained.run)
    assert not (trained.run / UNTOLD).exists()


def test_a_server_that_comes_in_mid_run_gets_a_run_with_all_of_it(
    mlflow_server, tracked, at_report, capsys
):
    mlflow_server.kill()
    at_report({6: mlflow_server.start})
    run = train(tracked("comes")).run
    assert sum("MLflow" in line for line in capsys.readouterr().err.splitlines()) == 1
    assert told_once(mlflow_server, run)
    assert not (run / UNTOLD).exists()


def test_a_training_killed_before_its_server_came_goes_on_into_one_run(
    mlflow_server, tracked, at_report
):
    def ends():
        raise KeyboardInterrupt

    experiment = tracked("killed")
    mlflow_server.kill()
    at_report({5: ends})
    with pytest.raises(KeyboardInterrupt):
        train(experiment)
    mlflow_server.start()
    assert told_once(mlflow_server, train(experiment).run)


def told_once(server, run):
    """Whether MLflow has one run of it, with its parameters, all reports and its artifacts."""
    client = MlflowClient(server.uri)
    at = client.get_experiment_by_name("tests").experiment_id
    found = [r for r in client.search_runs([at]) if r.info.run_name == run.name]
    assert [r.info.run_id for r in found] == [find_run(run).run_id]
    assert found[0].data.params["family"] == "set_vae"
    steps, status, artifacts = told(server, run)
    assert (steps, status) == (list(range(1, 11)), "FINISHED")
    return "checkpoint" in artifacts


@pytest.fixture
def turning_away():
    """The URI, with a password, of a server that takes no token."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(403)
            self.end_headers()

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://me:hush@127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["scheme", "token"])
def test_what_waiting_does_not_mend_is_one_line_before_anything_begins(
    kind, turning_away, monkeypatch, capfd, tmp_path, synthetic_cohort
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", turning_away if kind == "token" else "htp://host")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["train", str(CONFIG), f"data.cohort={synthetic_cohort}", "output=runs"])
    said = capfd.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert len(said) == 1, said
    assert "MLflow cannot be told there" in said[0]
    assert "MLFLOW_TRACKING_URI" in said[0]
    assert "hush" not in said[0]
    assert not any(os.scandir(tmp_path / "runs")) if (tmp_path / "runs").exists() else True
