from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from killed import Killed

from ehr_ray.errors import ConfigError
from ehr_ray.runtime import tracking_store
from ehr_ray.runtime.tracking import open_run
from ehr_ray.runtime.tracking_store import (
    STORE,
    made_by_one,
    sqlite_file,
    sqlite_uri,
    tracking_uri,
)
from ehr_ray.storage.sync import held


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def experiment(tiny_config):
    def make(output, **tracking):
        return tiny_config(output=output, **{f"tracking.{k}": v for k, v in tracking.items()})

    return make


def test_a_plain_folder_has_the_uri_that_people_know():
    assert sqlite_uri(Path("/a/my runs/mlflow.db")) == "sqlite:////a/my runs/mlflow.db"
    assert sqlite_uri(Path("runs/mlflow.db")) == "sqlite:///runs/mlflow.db"


@pytest.mark.parametrize("given", ["sqlite:///store/m.db", "sqlite+pysqlite:///store/m.db"])
def test_a_relative_store_lies_in_the_folder_of_the_command(given, here, experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    assert tracking_uri(experiment("runs")) == f"sqlite:///{here}/store/m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{given}?timeout=20")
    assert tracking_uri(experiment("runs")).endswith(f"///{here}/store/m.db?timeout=20")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert tracking_uri(experiment("runs", uri=given)) == f"sqlite:///{here}/store/m.db"


@pytest.mark.parametrize("uri", ["sqlite:////x/m.db", "sqlite://", "http://h:5000", "databricks"])
def test_other_uris_stay(uri, experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert tracking_uri(experiment("runs")) == uri


def test_a_store_of_objects_holds_no_sqlite(experiment):
    with pytest.raises(ConfigError, match="output=s3://b/runs: MLflow's sqlite cannot lie in a"):
        tracking_uri(experiment("s3://b/runs"))


def test_a_store_is_made_by_one_process_at_a_time(here, experiment, monkeypatch):
    monkeypatch.setenv("EHR_RAY_STAGING", str(here / "copies"))
    run = experiment(here / "runs")
    run.directory.mkdir(parents=True)
    with ThreadPoolExecutor(1) as other:
        with held(here / "runs" / STORE):
            waiting = other.submit(open_run, run)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=1.0)
            assert not (here / "runs" / STORE).exists()
        assert waiting.result().run_id
    assert (here / "runs" / STORE).stat().st_size > 0


def test_a_store_whose_tables_are_half_made_by_a_kill_has_no_name(here, monkeypatch):
    def killed(uri):
        sqlite_file(uri).write_text("some tables")
        raise Killed

    monkeypatch.setenv("EHR_RAY_STAGING", str(here / "copies"))
    monkeypatch.setattr(tracking_store, "connected", killed)
    with pytest.raises(Killed), made_by_one("sqlite:///runs 1/m.db"):
        pass
    assert not (here / "runs 1" / "m.db").exists()


def test_no_password_is_told_with_a_refusal(here, experiment):
    run = experiment(here / "runs", uri="htp://me:hush@host")
    run.directory.mkdir(parents=True)
    with pytest.raises(ConfigError, match="htp://host: MLflow cannot be told there") as told:
        open_run(run)
    assert "hush" not in str(told.value)
