"""Verbs that train nothing, and what MLflow is told of them; in this process."""

import json
import shutil
import socket

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from ehr_ray.cli.main import main
from ehr_ray.commands.embed import embed
from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.expand import expand
from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import InputError
from ehr_ray.experiment import parse
from ehr_ray.runtime.tracking import RUN_FILE, find_run, open_run
from ehr_ray.runtime.verb_tracking import VERB, asked_for, tracked_verb


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def tracked(tiny_run, tmp_path_factory):
    """A trained run that MLflow knows, in a store beside it."""
    run = tmp_path_factory.mktemp("tracked") / "runs" / "tiny"
    shutil.copytree(tiny_run, run)
    raw = read_yaml(run / "experiment.yaml")
    raw |= {"output": str(run.parent), "name": "tiny", "tracking": {"experiment": "tests"}}
    for folder in (run, run / "checkpoint"):
        (folder / "experiment.yaml").write_text(yaml.safe_dump(raw))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        open_run(parse(raw))
    return run


def runs_of(uri, experiment="ehr_ray"):
    """Return (verb, run) of those that no training left."""
    client = MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    return client, {r.data.tags[VERB]: r for r in found if VERB in r.data.tags}


def rows(path, people=12):
    table = pd.DataFrame({"subject_id": range(people), "minute": 0, "code": "HR", "value": 80.0})
    table.to_csv(path, index=False)
    columns = ("--id-column", "subject_id", "--time-column", "minute", "--time-unit", "minutes")
    columns += ("--code-column", "code", "--value-column", "value")
    return ["ingest", "--source", "table", "--input", str(path), *columns, "--cpus", "1"]


def test_evaluate_elsewhere_and_embed_leave_runs_in_that_of_the_training(
    tracked, synthetic_cohort, here
):
    elsewhere = shutil.copytree(synthetic_cohort, here / "elsewhere")
    out = here / "out"
    evaluate(tracked, cohort=elsewhere, output=out, on_ray=False, pages=False)
    embed(tracked, elsewhere, here / "folder", on_ray=False)
    training = find_run(tracked)
    client, runs = runs_of(training.uri, "tests")
    assert set(runs) == {"evaluate", "embed"}
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags[MLFLOW_PARENT_RUN_ID] == training.run_id
        assert run.data.params["cohort"] == str(elsewhere)
    told, metrics = runs["evaluate"], json.loads((out / "metrics.json").read_text())
    name = "held_out/embedding/rankme"
    assert told.data.metrics[name] == pytest.approx(metrics[name])
    artifacts = {f.path for f in client.list_artifacts(told.info.run_id)}
    assert {"metrics.json", "predictions", "embeddings"} <= artifacts
    assert runs["embed"].data.metrics["patients"] == 60
    assert [f.path for f in client.list_artifacts(runs["embed"].info.run_id)] == ["_embed.json"]
    assert not list((here / "work").iterdir())


def test_ingest_and_expand_leave_a_run_where_one_is_asked_for(here, tracked):
    uri, out = find_run(tracked).uri, here / "cohort"
    command = [*rows(here / "rows.csv"), "--output", str(out), "--splits", "all:train"]
    command += ["--tracking-uri", uri, "--experiment", "data"]
    main(command)
    expand(out, here / "expanded", on_ray=False, tracking=asked_for(uri, "data"))
    client, runs = runs_of(uri, "data")
    ingested, expanded = runs["ingest"], runs["expand"]
    assert ingested.data.params["splits"] == "all:train"
    assert ingested.data.params["options.code_column"] == "code"
    assert ingested.data.metrics["subjects.train"] == ingested.data.metrics["rows_read"] == 12
    assert "dataset.json" in {f.path for f in client.list_artifacts(ingested.info.run_id)}
    assert expanded.data.params["lvcf_minutes"] == "2880.0"
    assert expanded.data.metrics["tokens"] == 12
    assert "_expand.json" in {f.path for f in client.list_artifacts(expanded.info.run_id)}
    main(command)
    assert len(client.search_runs([ingested.info.experiment_id])) == 2  # it was there already


def test_without_a_place_nothing_is_written(here, tiny_run, synthetic_cohort):
    main([*rows(here / "rows.csv"), "--output", str(here / "cohort"), "--splits", "all:train"])
    embed(tiny_run, synthetic_cohort, here / "out.parquet", on_ray=False)
    assert not list((here / "work").iterdir())
    assert {p.name for p in here.iterdir()} == {"work", "rows.csv", "cohort", "out.parquet"}
    with pytest.raises(InputError, match="--experiment data: no MLflow to track in; give --track"):
        asked_for(None, "data")


def test_a_run_whose_store_is_gone_has_none_made_at_its_place(tracked, synthetic_cohort, here):
    moved = shutil.copytree(tracked, here / "moved")
    (moved / RUN_FILE).write_text(f"uri: sqlite:///{here}/runs/mlflow.db\nrun_id: abc\n")
    embed(moved, synthetic_cohort, here / "out.parquet", on_ray=False)
    assert not (here / "runs").exists()


def test_a_server_that_is_away_stops_no_verb(here, caplog):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        uri = f"http://me:hush@127.0.0.1:{listening.getsockname()[1]}"
    main([*rows(here / "rows.csv"), "--output", str(here / "cohort"), "--tracking-uri", uri])
    assert (here / "cohort" / "metadata" / "dataset.json").is_file()
    (line,) = [r.getMessage() for r in caplog.records if "MLflow" in r.getMessage()]
    assert line.endswith("does not answer (connection refused); what was written is whole without")
    assert "hush" not in line


def test_a_verb_that_fails_leaves_a_failed_run_and_a_mistake_none(tracked):
    place = asked_for(find_run(tracked).uri, None)
    with pytest.raises(OSError, match="full"), tracked_verb(place, "embed", "x", {}):
        raise OSError("full")
    with pytest.raises(InputError), tracked_verb(place, "expand", "x", {}):
        raise InputError("no such folder")
    runs = runs_of(place.uri)[1]
    assert {verb: run.info.status for verb, run in runs.items()} == {"embed": "FAILED"}
