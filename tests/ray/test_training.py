"""Ray Train runs the same loop: same numbers, and nothing lost to a kill."""

import os
import signal
import subprocess
import sys
import threading

import pandas as pd
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from forked_workers import forking_python
from ray._private.state import actors
from waiting import wait_until

from ehr_ray.commands.benchmark.faults import goodput, same_weights, train_noted
from ehr_ray.commands.train.command import train
from ehr_ray.errors import ConfigError, InputError, RunError
from ehr_ray.experiment import dump
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.tracking import UNTOLD
from ehr_ray.train import checkpoint

pytestmark = pytest.mark.ray
LONG = {"train__max_epochs": 12, "train__report_steps": 4}
PROGRAM = "import sys; sys.executable = sys.argv.pop(1); from ehr_ray.cli.main import main; main()"
"""`ehr-ray` whose Ray forks its workers."""


@pytest.fixture(scope="module")
def undisturbed(cluster, make, tmp_path_factory):
    """A run of two workers that nothing happens to, told to MLflow."""
    changes = {key.replace("__", "."): value for key, value in LONG.items()}
    changes |= {"name": "whole", "cluster.num_workers": 2, "tracking.experiment": "tests"}
    return train(make("set_vae", **changes)).run


def test_two_workers_give_the_loss_curve_of_one(undisturbed, tiny):
    one = train(tiny("one", cluster__num_workers=0, **LONG)).run
    curves = [pd.read_parquet(run / "history.parquet") for run in (one, undisturbed)]
    metrics = [c for c in curves[0] if c.startswith(("train/", "val/"))]
    assert len(metrics) >= 8
    assert len(curves[0]) == len(curves[1]) >= 12
    # Later a rounding may decide a tie of nearest tokens the other way.
    first = [curve[metrics].head(4) for curve in curves]
    pd.testing.assert_frame_equal(*first, rtol=1e-4)


def test_a_killed_worker_restarts_and_the_run_ends_with_the_same_weights(
    cluster, tiny, undisturbed
):
    """Rank 0 is killed after 10 steps. `benchmark --only faults`, a slow test, kills again."""
    experiment = tiny("killed", cluster__num_workers=2, cluster__max_failures=1, **LONG)
    run = experiment.directory
    with prepared(experiment, get_family("set_vae"), on_ray=True) as data:
        kills = train_noted(
            experiment, data, run, lambda n, start: n == 0 and max(start.steps, default=0) >= 10
        )
    assert kills.ranks == [0]
    whole = checkpoint.saved_progress(undisturbed).step
    assert checkpoint.saved_progress(run).step == whole
    assert same_weights(run, undisturbed)
    left = pd.read_parquet(run / "history.parquet").drop(columns=["seconds", "data_wait"])
    right = pd.read_parquet(undisturbed / "history.parquet").drop(columns=["seconds", "data_wait"])
    pd.testing.assert_frame_equal(left, right)
    numbers = goodput(run / "starts", 0.0, 100.0)
    assert numbers["steps"] == whole
    # What was done after the last report, each four steps, is done again.
    assert numbers["steps repeated"] <= 4 + 4
    assert 0 < numbers["goodput"] < 1


def test_a_lost_controller_gives_its_room_back(cluster, tiny):
    """All four CPUs are the first worker's, so that no other starts before they are free again."""
    room = {"cluster__num_workers": 1, "cluster__cpus_per_worker": 4, "cluster__wait_seconds": 600}
    experiment = tiny("controller", **room, train__max_epochs=4, train__report_steps=4)
    run = experiment.directory
    killed, over = [], threading.Event()

    def kill():
        wait_until(lambda: over.is_set() or checkpoint.saved_progress(run) is not None)
        if over.is_set():
            return
        progress = checkpoint.saved_progress(run)
        of_runs = [a for a in actors().values() if a["ActorClassName"] == "TrainController"]
        killed.append(progress.step)
        os.kill(max(of_runs, key=lambda actor: actor["StartTime"])["Pid"], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        ended = train(experiment).step
    except RunError as error:  # which of another test may still have a CPU?
        alive = [a for a in actors().values() if a["State"] == "ALIVE"]
        error.add_note(f"{ray.available_resources()} are free beside {alive}")
        raise
    finally:
        over.set()
        thread.join()
    assert killed
    assert killed[0] < ended
    assert pd.read_parquet(run / "history.parquet")["step"].tolist() == [*range(4, ended + 1, 4)]


@pytest.mark.parametrize("mode", ["cache", pytest.param("stream", marks=pytest.mark.slow)])
def test_killed_program_resumes_by_the_same_call(
    mode, cluster, tiny, undisturbed, ray_folder, tmp_path, capsys
):
    """Killed, the program says nothing to its own Ray, to the run or to its lock.

    Rows that are streamed are made by one CPU of two beside both workers: that a killed program
    goes on in its stream is slow to show, since `jobs/test_nodes.py` has a stream lose a node, and
    `unit/runtime/data/test_stream.py` one that is killed without Ray.
    """
    room = {"cluster__num_workers": 2, "cluster__cpus_per_worker": 0.5}
    experiment = tiny("program", data__mode=mode, **room, **LONG)
    config = tmp_path / "program.yaml"
    config.write_text(yaml.safe_dump(dump(experiment)))
    command = [sys.executable, "-c", PROGRAM, forking_python(ray_folder), "train", str(config)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def begun():
        assert first.poll() is None, first.stderr.read()
        progress = checkpoint.saved_progress(experiment.directory)
        return progress is not None and progress.step >= 8

    wait_until(begun)
    first.kill()  # Ray's own processes end by themselves, some seconds later
    first.wait()
    assert not checkpoint.saved_progress(experiment.directory).finished
    assert train(experiment).resumed_at >= 8
    said = capsys.readouterr().err
    assert "resuming at step" in said
    assert ("rows streamed" in said) == (mode == "stream")
    assert same_weights(experiment.directory, undisturbed)
    assert train(experiment).already_finished


def test_a_tracking_server_that_comes_after_the_start_is_told_all(
    cluster, tiny, started_server, monkeypatch
):
    """The driver makes the run then; the worker, another process, finds it by its key."""
    from mlflow import MlflowClient

    if started_server.running:
        started_server.kill()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", started_server.uri)
    changes = {**LONG, "tracking__experiment": "late"}
    experiment = tiny("server", cluster__num_workers=1, **changes)
    run = experiment.directory

    def come():
        wait_until(lambda: checkpoint.saved_progress(run) is not None)
        started_server.start()

    thread = threading.Thread(target=come)
    thread.start()
    train(experiment)
    thread.join()
    if (run / UNTOLD).is_file():  # it came as the run ended
        train(experiment)
    client = MlflowClient(started_server.uri)
    (found,) = client.search_runs([client.get_experiment_by_name("late").experiment_id])
    points = client.get_metric_history(found.info.run_id, "val/objective")
    assert [p.step for p in points] == pd.read_parquet(run / "history.parquet")["step"].tolist()
    assert found.info.status == "FINISHED"
    assert found.data.params["train.lr"] == "0.003"


def test_every_patient_is_drawn_once_an_epoch_whatever_the_workers(cohort, tiny):
    from ehr_ray.runtime.training.worker import loader_of

    experiment = tiny()
    family = get_family("set_vae")
    splits = pq.read_table(cohort / "metadata" / "subject_splits.parquet").to_pandas()
    expected = sorted(splits[splits["split"] == "train"]["subject_id"])
    with prepared(experiment, family, on_ray=False) as data:
        loader = loader_of(experiment, family, data)
        for world in (1, 2, 3):
            drawn = [
                int(subject)
                for rank in range(world)
                for micro in loader.train_steps(1, 0, rank, world)
                for batch in micro
                for subject in batch["subject_id"]
            ]
            assert sorted(drawn) == expected


def test_an_impossible_number_of_workers_is_refused_with_the_arithmetic(cluster, tiny):
    with pytest.raises(ConfigError, match=r"num_workers=64 .* needs 64 CPUs, but .* has 4"):
        train(tiny("many", cluster__num_workers=64))


def test_another_experiment_under_the_same_name_is_refused(cluster, tiny):
    train(tiny("same", cluster__num_workers=0))
    with pytest.raises(ConfigError, match=r"train\.lr: 0\.003 -> 0\.1"):
        train(tiny("same", cluster__num_workers=0, train__lr=0.1))


def test_a_refused_start_does_not_claim_the_name(cluster, tiny, tmp_path):
    other = train(tiny("other", cluster__num_workers=0, model__latent=3)).run
    for wrong, why in ((tmp_path / "nope", "no checkpoint here"), (other, "values fit this model")):
        with pytest.raises(InputError, match=why):
            train(tiny("again", cluster__num_workers=0, model__width=16, init_from=str(wrong)))
    assert train(tiny("again", cluster__num_workers=0)).step > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_diverged_run_fails_in_one_line_and_is_not_retried(workers, cluster, tiny):
    from ehr_ray.errors import RunError

    name = f"diverged_{workers}"
    with pytest.raises(RunError, match=rf"^{name}: .* not finite") as failed:
        train(tiny(name, cluster__num_workers=workers, train__lr=1e30, train__clip=None))
    assert str(failed.value).count(name) == 1


def test_mlflow_holds_parameters_metrics_by_step_and_artifacts(undisturbed):
    from mlflow import MlflowClient

    note = yaml.safe_load((undisturbed / "mlflow.yaml").read_text())
    client = MlflowClient(note["uri"])
    logged = client.get_run(note["run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["train.lr"] == "0.003"
    history = pd.read_parquet(undisturbed / "history.parquet")
    points = client.get_metric_history(note["run_id"], "val/objective")
    assert [p.step for p in points] == history["step"].tolist()
    assert [p.value for p in points] == pytest.approx(history["val/objective"].tolist())
    names = {a.path for a in client.list_artifacts(note["run_id"])}
    assert {"checkpoint", "history.parquet", "experiment.yaml"} <= names
