from pathlib import Path

import pytest
from mlflow import MlflowClient

from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import parse
from ehr_ray.runtime import tracking as tracking_module
from ehr_ray.runtime.tracking import RUN_FILE, Tracker, find_run, leave_run, open_run
from ehr_ray.runtime.tracking_store import STORE, sqlite_uri


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def experiment(output, **tracking):
    plain = {"family": "set_vae", "name": "run", "output": str(output), "data": {"cohort": "c"}}
    return parse({**plain, "tracking": tracking})


def test_the_store_lies_in_the_output_whatever_it_is_called(here):
    for name in ("my runs", "which? 100% of%20course b=c&d#e é+@:"):
        output = here / "all" / name
        run = experiment(output)
        run.directory.mkdir(parents=True)
        (run.directory / "note.txt").write_text(name)
        tracked = open_run(run)
        tracker = Tracker(tracked)
        tracker.report({"step": 3, "epoch": 1.0})
        tracker.artifacts(run.directory, ("note.txt",))
        tracker.close("FINISHED")
        assert tracker.flush() == ""
        assert (output / STORE).stat().st_size > 0
        assert open_run(run) == tracked  # found again, not made anew
        client = MlflowClient(tracked.uri)
        assert [m.step for m in client.get_metric_history(tracked.run_id, "epoch")] == [3]
        stored = client.download_artifacts(tracked.run_id, "note.txt", str(run.directory))
        assert Path(stored).read_text() == name
        assert {path.name for path in output.iterdir()} == {STORE, "mlartifacts", "run"}
    assert len(list((here / "all").iterdir())) == 2
    assert [path.name for path in here.iterdir()] == ["all"]


def test_a_run_tracked_under_a_relative_uri_is_found_again(here):
    run = experiment(here / "runs", uri="sqlite:///m.db")
    tracked = open_run(run)
    note = run.directory / RUN_FILE
    note.write_text(note.read_text().replace(tracked.uri, "sqlite:///m.db"))
    assert read_yaml(note)["uri"] == "sqlite:///m.db"
    assert open_run(run).run_id == tracked.run_id


def test_artifacts_of_runs_in_a_store_lie_beside_the_file(here, monkeypatch):
    monkeypatch.setenv("EHR_RAY_STAGING", str(here / "copies"))
    store = here / "why?" / "m.db"
    tracked = open_run(experiment("s3://b/runs", uri=sqlite_uri(store)))
    place = MlflowClient(tracked.uri).get_run(tracked.run_id).info.artifact_uri
    assert place.startswith((store.parent / "mlartifacts").as_uri())


class Away:
    """An outbox whose server is away: it keeps what it is asked until the test has it made."""

    def __init__(self):
        self.asked = []

    def ask(self, function, limit):
        self.asked.append(function)
        return TimeoutError(f"no answer in {limit:g} seconds")

    def come(self, client):
        while self.asked:
            self.asked.pop(0)(client)


@pytest.fixture
def away(monkeypatch, here):
    """A store that does not answer at first, and its client once it does."""
    box, client = Away(), MlflowClient(f"sqlite:///{here / 'server.db'}")
    monkeypatch.setattr(tracking_module, "outbox", lambda _uri: box)
    monkeypatch.setattr(tracking_module, "is_remote", lambda _uri: True)
    monkeypatch.setattr(tracking_module, "_experiment_id", lambda *_: "0")
    box.client = client
    return box


def test_a_run_that_was_left_before_its_server_came_is_not_the_next_one_s(here, away):
    """As of a trial that takes another's place: both runs are made, each with its own key."""
    run = experiment(here / "runs", experiment="tests")
    run.directory.mkdir(parents=True)
    first = open_run(run)
    leave_run(run.directory, "taken over")
    second = open_run(run)
    assert first.key != second.key
    away.come(away.client)
    made = {r.data.tags["ehr_ray.key"]: r.info.run_id for r in away.client.search_runs(["0"])}
    assert made.keys() == {first.key, second.key}
    assert find_run(run.directory).run_id == made[second.key]


def test_a_server_that_is_away_takes_no_run_of_another_from_it(here, away):
    """A mistyped host; corrected, the same command goes on with the run there is."""
    run = experiment(here / "runs", uri="http://mistyped:5000")
    run.directory.mkdir(parents=True)
    note = "uri: http://other:5000\nrun_id: abc\n"
    (run.directory / RUN_FILE).write_text(note)
    with pytest.raises(ConfigError, match="mistyped:5000: MLflow cannot be told there"):
        open_run(run)
    assert (run.directory / RUN_FILE).read_text() == note
