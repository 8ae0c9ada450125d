"""Searches on Ray Tune: what they leave, whom they stop, what fails, and who takes over whom."""

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from waiting import wait_until

from ehr_ray.cli.main import main
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.train.command import train
from ehr_ray.commands.tune import tune
from ehr_ray.errors import ConfigError, InputError, ResourcesUnavailableError
from ehr_ray.experiment import dump
from ehr_ray.runtime.tracking import find_run
from ehr_ray.runtime.training.ranking import MEASURES
from ehr_ray.runtime.tuning.trial import FINAL, read_trial, write_trial
from ehr_ray.train import history
from ehr_ray.train.checkpoint import load

pytestmark = pytest.mark.ray


class Said:
    """A screen that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)

    passing = say


@pytest.fixture
def search(tiny, cluster):
    """Make a search of two epochs a trial, one at a time; further settings as in `tiny`."""

    def make(space, name="sweep", **changes):
        settings = {"train.max_epochs": 2, "tune.scheduler": "none", "tune.trials": 3}
        settings |= {"tune.concurrent": 1, **changes}  # one actor serves one trial after the other
        return tiny(name, **settings, search=yaml.safe_dump(space, default_flow_style=True))

    return make


ENDS = {"none": {"finished"}, "asha": {"finished", "stopped"}}
RATES = {"train.lr": {"loguniform": [1.0e-4, 1.0e-2]}}


RANKED = {
    "name": "sweep",
    "train.max_epochs": 2,
    "tune.scheduler": "none",
    "tune.trials": 3,
    "tracking.experiment": "sweeps",
    "search": "{train.lr: {loguniform: [1.0e-4, 1.0e-2]}, "
    "schedules.beta.end: default, schedules.free_bits: default}",
}


@pytest.fixture(scope="module")
def ranked(cluster, make, started_server):
    """A search whose trials, two at a time, are told to an MLflow server, and what it found."""
    experiment = make("set_vae", **{**RANKED, "tune.concurrent": 2})
    if not started_server.running:
        started_server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", started_server.uri)
        return experiment, tune(experiment)


@pytest.fixture
def copied(ranked, make, tmp_path, mlflow_server):
    """The same search in another folder, to be damaged."""
    shutil.copytree(ranked[1].root, tmp_path / "sweep")
    return make("set_vae", **{**RANKED, "tune.concurrent": 1, "output": tmp_path})


def test_a_search_leaves_ranked_runs_and_a_parent_with_nested_runs_in_mlflow(
    ranked, make, mlflow_server, tmp_path
):
    (experiment, searched), said = ranked, Said()
    frame = pd.read_parquet(searched.root / "trials.parquet")
    assert frame["status"].tolist() == ["finished"] * 3
    kept = frame[~frame["collapsed"]]
    assert kept["score"].is_monotonic_increasing
    for row in frame.to_dict("records"):
        folder = searched.root / "trials" / f"{row['trial']:04d}"
        assert load(folder).experiment.train.lr == pytest.approx(row["train.lr"])
        rows = history.read(folder)
        assert row["score"] == pytest.approx(rows["val/objective"].min())
    assert "parallel" in {path.stem for path in (searched.root / "figures").iterdir()}
    assert "<img" in (searched.root / "report.html").read_text()
    parent = find_run(searched.root)
    assert parent.uri == mlflow_server.uri
    client = MlflowClient(parent.uri, registry_uri=parent.uri)
    (group,) = [e for e in client.search_experiments() if e.name == "sweeps"]
    runs = {r.info.run_id: r for r in client.search_runs([group.experiment_id])}
    nested = [r for r in runs.values() if r.data.tags.get("mlflow.parentRunId") == parent.run_id]
    assert len(runs) == 4
    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    assert sorted(float(r.data.params["train.lr"]) for r in nested) == sorted(frame["train.lr"])
    assert all(len(client.get_metric_history(r.info.run_id, "score")) == 2 for r in nested)
    told = runs[parent.run_id].data.params
    assert told["search.train.lr"] == "LogUniform(low=0.0001, high=0.01)"
    assert told["tune.scheduler"] == "none"
    best = runs[runs[parent.run_id].data.tags["best_run_id"]]
    assert best.data.tags["best"] == "true"
    assert int(best.info.run_name) == searched.sweep.best["trial"]
    (version,) = client.search_model_versions("name='sweep'")
    assert version.run_id == best.info.run_id
    stored = client.download_artifacts(version.run_id, "checkpoint", str(tmp_path))
    assert load(stored).experiment.family == "set_vae"

    again = tune(experiment, screen=said)
    assert "3 begun before, 3 of them ended" in said.lines[0]
    assert again.sweep.frame.equals(searched.sweep.frame)
    assert len(client.search_model_versions("name='sweep'")) == 1
    with pytest.raises(ConfigError, match="holds another search"):
        tune(make("set_vae", **{**RANKED, "search": "{train.lr: [1.0e-3]}"}))


def test_a_search_whose_server_is_away_is_told_by_the_same_command(
    search, started_server, monkeypatch
):
    """Neither the search's run nor those of its trials are made before the server answers."""
    if started_server.running:
        started_server.kill()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", started_server.uri)
    changes = {"tune.method": "grid", "tracking.experiment": "away", "train.max_epochs": 1}
    changes["tune.register"] = False  # the server is that of other tests too
    experiment, said = search({"train.lr": [1.0e-3, 2.0e-3]}, **changes), Said()
    first = tune(experiment, screen=said)
    assert sum("does not answer (connection refused)" in line for line in said.lines) == 1
    assert first.lines[-1].endswith("the same command tells MLflow later")
    assert first.sweep.frame["status"].tolist() == ["finished"] * 2
    started_server.start()
    assert not any("MLflow at" in line for line in tune(experiment).lines)
    client = MlflowClient(started_server.uri)
    (group,) = [e for e in client.search_experiments() if e.name == "away"]
    runs = client.search_runs([group.experiment_id])
    assert {r.info.status for r in runs} == {"FINISHED"}
    parent = find_run(first.root).run_id
    names = {r.info.run_name: r.data.tags.get("mlflow.parentRunId") for r in runs}
    assert names == {"sweep": None, "0000": parent, "0001": parent}
    nested = [r for r in runs if r.info.run_id != parent]
    assert {float(r.data.params["train.lr"]) for r in nested} == {1e-3, 2e-3}
    assert all(client.get_metric_history(r.info.run_id, "score") for r in nested)


def test_a_trial_that_fails_is_marked_and_the_others_go_on(search):
    said = Said()
    searched = tune(search({"train.lr": [1.0e-3, 1.0e30]}, **{"tune.method": "grid"}), screen=said)
    frame = searched.sweep.frame.set_index("train.lr")
    assert frame["status"].to_dict() == {1e-3: "finished", 1e30: "failed"}
    assert "not finite" in frame["error"][1e30]
    assert searched.sweep.best["train.lr"] == 1e-3
    assert any("1 of 2 trials failed" in line for line in searched.lines)
    assert any("trial 1 failed" in line and "not finite" in line for line in said.lines)


def test_damaged_trials_are_marked_and_a_damaged_best_is_not_registered(ranked, copied, tmp_path):
    numbers = ranked[1].sweep.frame["trial"]
    best, *_, other = (copied.directory / "trials" / f"{n:04d}" for n in numbers)
    write_trial(other, int(other.name), read_trial(other)["sample"])  # as if it had been killed
    for path in [best / "checkpoint", *(other / "state").glob("*")]:
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
    again = tune(copied)
    frame = again.sweep.frame
    assert frame["status"].tolist() == ["finished", "finished", "failed"]
    assert "damaged" in frame["error"][2]
    assert "1 failed; remove the folder of a trial to try it again" in again.lines
    said = "the checkpoint of the best trial cannot be used: "
    assert any(line.startswith(said) for line in again.lines)
    uri = find_run(best).uri
    client = MlflowClient(uri, registry_uri=uri)
    (version,) = client.search_model_versions("name='sweep'")
    load(client.download_artifacts(version.run_id, "checkpoint", str(tmp_path)))


def test_a_trial_that_lacks_room_is_no_failure_and_goes_on_another_time(search, tmp_path):
    """Trials are of Optuna's choice here, before and after."""
    experiment = search(RATES, **{"tune.trials": 2, "tune.method": "optuna"})
    trials = [experiment.directory / "trials" / name for name in ("0000", "0001")]
    trials[0].mkdir(parents=True)
    (trials[0] / "state").write_text("no folder can be made here")
    (experiment.directory / "search.yaml").write_text(yaml.safe_dump(dump(experiment)))
    said = Said()
    with pytest.raises(
        ResourcesUnavailableError, match=r"sweep: trials could not go on: .*then run the same"
    ):
        tune(experiment, screen=said)
    assert [read_trial(trial).get("status") for trial in trials] == ["running", None]
    assert any(line.startswith("trial 0 cannot go on: ") for line in said.lines)
    (trials[0] / "state").unlink()
    frame = tune(experiment).sweep.frame
    assert frame["status"].tolist() == ["finished"] * 2
    assert frame["train.lr"].nunique() == 2


def test_a_search_without_a_score_exits_with_an_error(search, tmp_path, capfd):
    experiment = search({"train.lr": [1.0e30]}, **{"tune.method": "grid"})
    config = tmp_path / "diverges.yaml"
    config.write_text(yaml.safe_dump(dump(experiment)))
    with pytest.raises(SystemExit) as ended:
        main(["tune", str(config)])
    assert ended.value.code == 1
    assert "no trial has a score: all failed" in capfd.readouterr().err


def test_asha_stops_trials_by_their_steps(search):
    settings = {"tune.scheduler": "asha", "tune.grace_steps": 1, "tune.method": "grid"}
    settings |= {"tune.reduction_factor": 2, "train.max_epochs": 3}
    searched = tune(search({"train.lr": [3.0e-3, 1.0e-9]}, **settings))
    frame = searched.sweep.frame.set_index("train.lr")
    assert frame["status"].to_dict() == {3e-3: "finished", 1e-9: "stopped"}
    assert frame["step"][1e-9] < frame["step"][3e-3]


def test_a_bad_trial_goes_on_from_the_weights_of_a_good_one(search):
    settings = {"tune.scheduler": "pbt", "tune.method": "grid", "train.max_epochs": 6}
    settings |= {"tracking.experiment": "population", "tune.concurrent": 2}
    searched = tune(search({"train.lr": [3.0e-3, 1.0e-9]}, **settings, **{"tune.grace_steps": 1}))
    good, bad = (searched.root / "trials" / name for name in ("0000", "0001"))
    # Later the good one may take over in its turn: the rates of both have been changed.
    first = yaml.safe_load((bad / "lineage.yaml").read_text())[0]
    assert first["from"] == 0
    past = [history.read(path, before=first["step"] + 1) for path in (good, bad)]
    assert past[0]["val/objective"].tolist() == past[1]["val/objective"].tolist()
    assert past[1]["lr"].max() > 1e-6
    ends = [float(history.read(path)["val/objective"].iloc[-1]) for path in (good, bad)]
    assert ends[1] < float(past[0]["val/objective"].iloc[0])
    assert ends[0] == pytest.approx(ends[1], rel=0.5)
    # MLflow has another run after a takeover: its parameters and its whole curve are the trial's.
    client = MlflowClient(find_run(bad).uri)
    for folder in (good, bad):
        run = client.get_run(find_run(folder).run_id)
        assert float(run.data.params["train.lr"]) == read_trial(folder)["sample"]["train.lr"]
        told = client.get_metric_history(run.info.run_id, "val/objective")
        rows = history.read(folder)[["step", "val/objective"]].to_numpy().tolist()
        assert [[m.step, m.value] for m in told] == rows
    runs = client.search_runs([run.info.experiment_id])
    left = [run.data.tags["left"] for run in runs if "left" in run.data.tags]
    assert f"took over trial 0 at step {first['step']}" in left


def test_population_training_refuses_what_changes_shapes(search):
    space = {"model.latent": [8, 16], **RATES}
    with pytest.raises(ConfigError, match=r"search\.model\.latent changes the shape of weights"):
        tune(search(space, **{"tune.scheduler": "pbt"}))
    with pytest.raises(ConfigError, match=r"cluster\.num_workers=1 only"):
        tune(search(RATES, **{"tune.scheduler": "pbt", "cluster.num_workers": 2}))


def test_a_population_of_one_at_a_time_is_refused(search):
    with pytest.raises(ConfigError, match=r"needs at least 2 trials at a time, but has 1 of 3"):
        tune(search(RATES, **{"tune.scheduler": "pbt", "tune.concurrent": 1}))


def test_a_search_without_tuning_patients_is_refused_at_once(search, tmp_path):
    ingest("synthetic", None, tmp_path / "none", options={"patients": 20}, splits="0.8,0,0.2")
    with pytest.raises(InputError, match="no tuning split, whose patients rank the trials"):
        tune(search(RATES, **{"data.cohort": tmp_path / "none"}))


def test_a_trial_of_two_workers_is_a_ray_train_run(search, tiny):
    plan = {"train.max_epochs": 2, "tune.method": "grid", "cluster.num_workers": 2}
    frame = tune(search({"train.lr": [3.0e-3]}, **plan)).sweep.frame
    same = {"train.lr": 3.0e-3, "train.max_epochs": 2, "cluster.num_workers": 0}
    one = history.read(train(tiny("alone", **same)).run)
    assert frame["status"].tolist() == ["finished"]
    assert frame["score"][0] == pytest.approx(one["val/objective"].min(), rel=1e-2)


@pytest.mark.slow
def test_a_stopped_trial_of_two_workers_leaves_its_room_to_the_next(search):
    """That Ray gives back the room of a Ray Train run inside a trial that a scheduler stops.

    Four CPUs have room for one of them.
    """
    rates = {"train.lr": [3.0e-3, 1.0e-9, 2.9e-3]}
    settings = {"tune.method": "grid", "tune.scheduler": "asha", "tune.grace_steps": 1}
    settings |= {"tune.reduction_factor": 2, "cluster.cpus_per_worker": 2}
    settings |= {"train.max_epochs": 3, "cluster.wait_seconds": 60}
    frame = tune(search(rates, **settings, **{"cluster.num_workers": 2})).sweep.frame
    status = frame.set_index("trial")["status"]
    assert status.to_dict() | {2: ""} == {0: "finished", 1: "stopped", 2: ""}
    assert status[2] in {"finished", "stopped"}


def kill_once(experiment, folder, reached):
    """Search in a program of its own, and kill it once a trial has made a report."""
    config = folder / f"{experiment.name}.yaml"
    config.write_text(yaml.safe_dump(dump(experiment)))
    command = [sys.executable, "-m", "ehr_ray.cli.main", "tune", str(config)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def reported():
        assert first.poll() is None, first.stderr.read()
        return (experiment.directory / "trials" / reached / "measures.parquet").is_file()

    wait_until(reported)
    first.kill()  # Ray's own processes end by themselves, some seconds later
    first.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "scheduler"), [("random", "none"), ("random", "asha"), ("optuna", "asha")]
)
def test_a_killed_search_keeps_its_finished_trials_and_repeats_the_others(
    search, tmp_path, method, scheduler
):
    """That a search whose program is killed goes on as one that was not, with Ray's own processes.

    Each part is proved in seconds: proposals (test_proposals.py), schedulers (test_schedulers.py),
    a killed program (test_training.py), trials that were cut (here). One trial at a time, so that
    ASHA and Optuna see the same reports in the same order.
    """
    trials = 3 if scheduler == "none" else 6
    changes = {"train.max_epochs": 4, "tune.trials": trials}
    changes |= {"tune.scheduler": scheduler, "tune.method": method}
    changes |= {"tune.grace_steps": 1, "tune.reduction_factor": 2}
    whole = tune(search(RATES, "whole", **changes)).sweep.frame
    experiment = search(RATES, "cut", **changes)
    kill_once(experiment, tmp_path, "0001")
    trials = experiment.directory / "trials"
    assert read_trial(trials / "0000")["status"] == "finished"
    assert read_trial(trials / "0001")["status"] in {"running", *ENDS[scheduler] - {"finished"}}
    kept = (trials / "0000" / "history.parquet").stat().st_mtime_ns
    said = Said()
    resumed = tune(experiment, screen=said).sweep.frame
    assert "2 begun before, " in said.lines[0]
    assert (trials / "0000" / "history.parquet").stat().st_mtime_ns == kept
    assert set(resumed["status"]) == ENDS[scheduler]
    columns = ["trial", "status", "score", "train.lr", "step"]
    pd.testing.assert_frame_equal(resumed[columns], whole[columns])


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_killed_search_of_several_at_a_time_ends_with_the_same_best(search, tmp_path, scheduler):
    """That a kill between reports of trials side by side changes neither winner nor weights.

    Who reports first differs from run to run, so others may stop earlier or later.
    """
    rates = {"train.lr": [1.0e-6, 1.0e-7, 3.0e-3, 1.0e-8, 1.0e-9, 1.0e-10]}
    changes = {"train.max_epochs": 5, "tune.concurrent": 2, "tune.method": "grid"}
    changes |= {"tune.scheduler": scheduler, "tune.grace_steps": 1, "tune.reduction_factor": 2}
    first = tune(search(rates, "whole", **changes))
    experiment = search(rates, "cut", **changes)
    kill_once(experiment, tmp_path, "0002")
    ended = {
        folder.name: read_trial(folder)["status"]
        for folder in (experiment.directory / "trials").glob("[0-9]*")
    }
    again = tune(experiment)
    for name, status in ended.items():
        if status in FINAL:
            assert read_trial(again.root / "trials" / name)["status"] == status
    found = []
    for searched in (first, again):
        assert len(searched.sweep.frame) == 6
        assert set(searched.sweep.frame["status"]) == {"finished", "stopped"}
        best = {key: searched.sweep.best[key] for key in ("trial", "status", "score", "step")}
        weights = searched.root / "trials" / "0002" / "checkpoint" / "model.safetensors"
        found.append((best, weights.read_bytes()))
    assert found[0] == found[1]
    assert found[0][0]["trial"] == 2


@pytest.mark.slow
def test_a_killed_population_goes_on_to_its_end(search, tmp_path):
    """That trials which took over others go on after a kill, each with its whole curve.

    Which trial takes over which hangs on who reports first, so only the whole is repeated.
    """
    rates = {"train.lr": [3.0e-3, 2.0e-3, 1.0e-8, 1.0e-9]}
    changes = {"train.max_epochs": 8, "tune.method": "grid", "tune.scheduler": "pbt"}
    changes |= {"tune.grace_steps": 1, "tune.concurrent": 2}
    experiment = search(rates, "cut", **changes)
    kill_once(experiment, tmp_path, "0003")
    again = tune(experiment)
    assert set(again.sweep.frame["status"]) == {"finished"}
    for folder in (again.root / "trials").glob("[0-9]*"):
        for file in ("history.parquet", MEASURES):
            assert history.read(folder, file=file)["epoch"].tolist() == list(range(1, 9))
    taken = [p.parent.name for p in (again.root / "trials").glob("*/lineage.yaml")]
    assert {"0002", "0003"} & set(taken)


def test_a_report_that_was_not_measured_before_a_kill_is_made_again(ranked, copied):
    folder = copied.directory / "trials" / "0000"
    whole, sample = history.read(folder, file=MEASURES), read_trial(folder)["sample"]
    assert len(whole) == 2
    whole.iloc[:1].to_parquet(folder / MEASURES)
    write_trial(folder, 0, sample)
    again = tune(copied)
    assert history.read(folder, file=MEASURES).equals(whole)
    columns = ["trial", "status", "score", "best_step", "step"]
    assert again.sweep.frame[columns].equals(ranked[1].sweep.frame[columns])


@pytest.mark.slow
def test_the_median_stops_a_hopeless_trial(search):
    """That Ray Tune obeys this scheduler too; its verdicts are those of `test_schedulers.py`."""
    rates = {"train.lr": [3.0e-3, 2.5e-3, 2.0e-3, 1.0e-9]}
    changes = {"tune.scheduler": "median", "tune.method": "grid", "tune.concurrent": 1}
    searched = tune(search(rates, **changes, **{"tune.grace_steps": 1, "train.max_epochs": 4}))
    frame = searched.sweep.frame.set_index("train.lr")
    assert frame["status"][1e-9] == "stopped"
    assert frame["step"][1e-9] < frame["step"][3e-3]
    assert set(frame["status"].drop(1e-9)) == {"finished"}


def test_an_impossible_request_is_refused_with_the_arithmetic(search):
    with pytest.raises(ConfigError, match=r"num_workers=3 x .*=2 = 6 CPUs, but there are 4"):
        tune(search(RATES, **{"cluster.num_workers": 3, "cluster.cpus_per_worker": 2}))


def test_jepa_trials_are_ranked_by_a_probe(make, cluster):
    changes = {"tune.trials": 2, "tune.scheduler": "none", "name": "probed", "tune.concurrent": 1}
    changes["search"] = "{model.mask: default, model.regulariser: [none, vicreg]}"
    searched = tune(make("visit_jepa", **changes))
    assert searched.sweep.select.metric == "probe/auroc"
    assert searched.sweep.frame["score"].between(0, 1).all()
    assert searched.sweep.frame["score"].equals(searched.sweep.frame["probe/auroc"])
    assert "latent/collapsed" in searched.sweep.frame
