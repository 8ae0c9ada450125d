"""What is said where Ray does not start; Ray itself is not started here."""

import os
import signal

import pytest
import ray
import torch

from ehr_ray.commands.ingest import ingest
from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.errors import ConfigError, InputError, RunError
from ehr_ray.runtime.session import (
    check_memory,
    check_resources,
    check_stream,
    session,
    session_of,
    stopped_like_interrupted,
)

LATE = (
    Exception("The current node timed out during startup. This could happen because ..."),
    TimeoutError("Timed out after 30 seconds while waiting for node to startup."),
)


@pytest.fixture
def starts(monkeypatch):
    """Let `ray.init` raise, one after the other, what the test puts in; None where it starts."""
    ends, done = [], []

    def init(**options):
        assert options["num_cpus"] in (None, 2)  # else Ray would not look at a container's limit
        done.append("init")
        if (error := ends.pop(0)) is not None:
            raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: done.append("shutdown"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    return ends, done


@pytest.mark.parametrize("error", LATE)
def test_a_ray_that_is_late_is_started_once_more(starts, error):
    ends, done = starts
    ends += [error, None]
    with session():
        assert done == ["init", "shutdown", "init"]


def test_a_ray_that_is_late_twice_names_what_the_verb_has(starts, tmp_path, monkeypatch):
    ends, done = starts
    ends += [*LATE]
    with pytest.raises(RunError, match="name a running one by RAY_ADDRESS") as caught, session():
        pass
    assert "num_workers" not in str(caught.value)
    assert "\n" not in str(caught.value)
    ends += [*LATE]
    workers = session_of(ClusterConfig(num_workers=2))
    with pytest.raises(RunError, match=r"do without it \(cluster.num_workers=0\)"), workers:
        pass
    ends += [*LATE]
    with pytest.raises(RunError, match=r"do without it \(--cpus 1\)"):
        ingest("synthetic", None, tmp_path / "a", options={"patients": 90}, cpus=2)
    assert done.count("init") == 6


def test_a_container_with_less_than_a_cpu_is_told_and_ray_ended(starts, monkeypatch):
    """Ray rounds its share down to none, and would wait for a CPU without end."""
    ends, done = starts
    ends.append(None)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    with pytest.raises(ConfigError, match=r"no whole CPU here.*raise the limit to 1"), session():
        pass
    assert done == ["init", "shutdown"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_for_a_process_without_workers_is_looked_for_before_data_are_prepared():
    check_resources(ClusterConfig(num_workers=0))
    with pytest.raises(InputError, match="gpus_per_worker=1: torch finds no GPU"):
        check_resources(ClusterConfig(num_workers=0, gpus_per_worker=1))


def test_another_error_is_not_tried_again(starts):
    ends, done = starts
    ends += [ConnectionError("timed out"), ValueError("no such thing")]
    with pytest.raises(ConfigError, match="no Ray cluster answers"), session():
        pass
    with pytest.raises(ValueError, match="no such thing"), session():
        pass
    assert done == ["init", "init"]


def test_an_experiment_without_workers_starts_no_ray(starts):
    with session_of(ClusterConfig(num_workers=0)):
        assert starts[1] == []


def test_a_program_that_is_told_to_end_does_so_as_by_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopped_like_interrupted():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stream_needs_a_cpu_that_no_worker_reserves_on_this_machine(monkeypatch):
    """Ray Data would wait for one without end, and the workers for it."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"2 workers .*=1 leave no whole CPU of 2 to make"):
        check_stream(ClusterConfig(num_workers=2))
    with pytest.raises(ConfigError, match=r"2 workers .*=1 leave no whole CPU of 2 to make"):
        check_stream(ClusterConfig(num_workers=(1, 4)))  # as many start as there is room for
    check_stream(ClusterConfig(num_workers=2, cpus_per_worker=0.5))
    check_stream(ClusterConfig(num_workers=(1, 2), cpus_per_worker=0.5))
    check_stream(ClusterConfig(num_workers=2, address="head:6379"))  # whose nodes only it knows


def test_rows_in_memory_are_for_one_machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_memory(ClusterConfig(num_workers=2))
    check_memory(ClusterConfig(num_workers=2, address="local"))
    with pytest.raises(
        ConfigError, match=r"data.cache=memory: .*\(head:6379\).*use data.cache=disk"
    ):
        check_memory(ClusterConfig(address="head:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # as `ray job submit` sets it
    with pytest.raises(ConfigError, match=r"10\.0\.0\.1:6379"):
        check_memory(ClusterConfig())
