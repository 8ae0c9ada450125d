"""What a run survives, in which words it gives up, and what a schedule of kills measures."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import ray.exceptions
import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from ehr_ray.commands.benchmark import faults
from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.errors import ConfigError, InputError, RunError
from ehr_ray.runtime.data.prepared import Prepared, prepared
from ehr_ray.runtime.session import check_resources
from ehr_ray.runtime.training import launch
from ehr_ray.runtime.training.launch import fit
from ehr_ray.runtime.training.worker import Job, check_share, train_here
from ehr_ray.storage.lock import RUN_LOCK
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.task import family_of

pytestmark = pytest.mark.ray


@pytest.fixture
def fits(monkeypatch, tiny):
    """Call `fit` with Ray's own replaced: fits(saved steps, endings) gives the calls it took."""

    def run(steps, endings, **changes):
        steps, endings, calls = iter(steps), iter(endings), []

        def ending(_):
            calls.append(1)
            error = next(endings)
            if error is not None:
                raise error
            return SimpleNamespace(return_value={"kind": "", "error": ""})

        fake = type("Trainer", (), {"__init__": lambda *_, **__: None, "fit": ending})
        monkeypatch.setattr("ehr_ray.runtime.training.trainer.Trainer", fake)
        monkeypatch.setattr(launch, "saved_step", lambda _: next(steps))
        experiment = tiny("lost", **changes)
        nothing = Prepared(None, {})
        fit(Job(experiment, nothing, experiment.directory, experiment.directory / "p", None))
        return len(calls)

    return run


def test_a_lost_controller_counts_only_where_nothing_was_saved_since(fits):
    lost = ray.exceptions.RayActorError
    once = {"cluster__max_failures": 1}
    assert fits([0, 4, 4, 8, 8, 12, 12], [lost(), lost(), lost(), None], **once) == 4
    with pytest.raises(RunError, match=r"lost: .*lost 2 times .*max_failures=1"):
        fits([0, 4, 4, 4], [lost(), lost()], **once)


def test_a_run_that_had_room_waits_for_it_again(fits):
    full = ray.train.ControllerError(WorkerGroupStartupTimeoutError(2))
    assert fits([0, 4, 4], [full, None]) == 2
    with pytest.raises(RunError, match=r"no resources for 1 workers .*cluster.wait_seconds=600"):
        fits([4, 4], [full])


def test_a_range_of_workers_needs_room_for_the_least(cluster):
    check_resources(ClusterConfig(num_workers=(1, 64)))
    with pytest.raises(ConfigError, match=r"num_workers=\[5, 64\], so 5 x .* needs 5 CPUs"):
        check_resources(ClusterConfig(num_workers=(5, 64)))


def test_a_batch_too_small_for_the_most_workers_is_refused_before_training(cluster, tiny):
    experiment = tiny(cluster__num_workers="[1, 64]")
    with prepared(experiment, family_of(experiment), on_ray=False) as data:
        job = Job(experiment, data, experiment.directory, experiment.directory / "p", None)
        check_share(job, 2)
        with pytest.raises(InputError, match="fewer than 64 workers"):
            fit(job)
    assert not experiment.directory.exists()


def test_a_worker_that_always_fails_is_given_up(cluster, tiny, tmp_path):
    experiment = tiny("broken", cluster__num_workers=1, cluster__max_failures=1)
    with prepared(experiment, family_of(experiment), on_ray=False) as data:
        run = tmp_path / "file"
        run.mkdir()
        (run / RUN_LOCK).mkdir()  # no worker can claim this run
        with pytest.raises(RunError, match=r"worker 0 failed: .*lost 2 times .*max_failures=1"):
            fit(Job(experiment, data, run, run / ".progress.jsonl", None))


def test_the_part_compares_two_runs_and_refuses_other_weights(tmp_path, cohort, monkeypatch):
    """Both runs are in this process here; tests/ray/test_training.py kills real workers."""
    seeds = iter((0, 0, 0, 0, 0, 1))

    def train_noted(experiment, data, run, due=None):
        experiment = replace(experiment, seed=next(seeds))
        train_here(Job(experiment, data, run, run / "p", None, run / "starts"), LocalBackend())
        return faults.Kills([time.monotonic() - 0.1], [0]) if due else faults.Kills()

    monkeypatch.setattr(faults, "train_noted", train_noted)
    monkeypatch.setattr(faults, "PACE_STEPS", 3)
    numbers = faults.fault_speed(cohort, tmp_path / "a", seconds=0.01)
    assert numbers["steps"] == 3
    assert numbers["steps repeated"] == 0
    assert 0 < numbers["goodput"] < 1 > numbers["undisturbed, goodput"] > 0
    with pytest.raises(RunError, match="after 1 kills the weights"):
        faults.fault_speed(cohort, tmp_path / "b", seconds=0.01)


@pytest.mark.slow
def test_a_worker_killed_every_20_seconds_costs_time_and_nothing_else(tmp_path):
    """That the benchmark's schedule of kills, on a Ray of its own, changes no weight."""
    command = [sys.executable, "-m", "ehr_ray.cli.main", "benchmark", "--only", "faults"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    target = tmp_path / "faults.json"
    done = subprocess.run(
        [*command, "--output", str(target)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads(target.read_text())["parts"]["faults"]
    assert numbers["kills"] >= 3
    assert numbers["weights equal to those undisturbed"] == 1
    assert 0 < numbers["goodput"] < numbers["undisturbed, goodput"] <= 1
