"""What `doctor` says of machines, none of which is this one."""

import shutil
import socket
from collections import namedtuple
from contextlib import closing

import pytest
import torch

from ehr_ray.commands.doctor import command, machine
from ehr_ray.commands.doctor.command import GIB, doctor
from ehr_ray.config.cluster import ClusterConfig
from ehr_ray.errors import ConfigError
from ehr_ray.runtime import session

Usage = namedtuple("Usage", "total used free")


def test_on_a_machine_everything_is_told_and_no_ray_is_started(monkeypatch, no_ray_starts):
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with no_ray_starts():
        names = [check.name for check in doctor()]
    for name in ("versions", "CPUs", "memory", "disk", "ports", "GPUs", "MLflow", "S3", "a run"):
        assert name in names


def test_a_quota_below_the_cpus_is_a_warning_unless_ray_runs_elsewhere(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "cpus", lambda: (64, 2.5))
    check = command.cpu(ClusterConfig())
    assert check.value == "2.5 of 64 for this process"
    assert "ray start --head --num-cpus 2" in check.remedy
    assert command.cpu(ClusterConfig(address="auto")).remedy == ""


def test_little_memory_is_a_warning_also_where_a_container_has_it(monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda: (64 * GIB, 32 * GIB))
    monkeypatch.setattr(machine, "memory_limit", lambda: None)
    assert command.memory().remedy == ""
    monkeypatch.setattr(machine, "memory_limit", lambda: GIB)
    assert "limit of the cgroup 1.0 GiB" in command.memory().value
    assert "cluster.num_workers=0" in command.memory().remedy


def test_a_small_shared_memory_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1 << 26, 0, 1 << 26))
    assert "--shm-size=2g" in command.shared_memory(tmp_path).remedy
    assert command.shared_memory(tmp_path / "none").remedy == ""


def test_a_port_in_use_is_named_with_the_option_that_moves_it(monkeypatch):
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(command, "PORTS", {port: "ray start --head --port"})
        checks = list(command.ports())
    assert [check.name for check in checks] == ["ports", f"port {port}"]
    assert "ray start --head --port=OTHER" in checks[1].remedy
    assert [check.remedy for check in command.ports()] == [""]


def test_credentials_are_found_by_their_names_and_never_shown(monkeypatch, tmp_path):
    for names, _ in command.CREDENTIALS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no credentials here" in command.credentials("S3").value
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    assert "AWS_SECRET_ACCESS_KEY is not; set both" in str(command.credentials("S3"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    told = str(command.credentials("S3"))
    assert "credentials by AWS_ACCESS_KEY_ID" in told
    assert "AKIA" not in told
    assert "wJalr" not in told
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "gone.json"))
    assert "no such file; correct it" in command.credentials("GCS").remedy


def test_a_server_that_is_away_is_a_warning_and_its_password_stays_hidden(monkeypatch):
    monkeypatch.setattr(command, "answers", lambda _: "no answer in 15 seconds")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@host:5000")
    check = command.tracking(None)
    assert "does not answer (no answer in 15 seconds)" in check.remedy
    assert "secret" not in str(check)


def test_a_version_that_was_never_tried_is_named_with_the_command(monkeypatch):
    there = {"ehr_ray": "0.1.0", "ray": "2.9.0", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(command, "SHOWN", ("ray", "torch"))
    monkeypatch.setattr(command.metadata, "version", lambda name: there[name])
    needs = ["ray[train]>=2.60,<2.62", "torch>=2.6,<2.14", "absent>=1; extra == 'test'"]
    monkeypatch.setattr(command.metadata, "requires", lambda _: needs)
    first, *wrong = command.versions()
    assert "ray 2.9.0, torch 2.13.0+cpu" in first.value
    assert [check.name for check in wrong] == ["ray"]
    assert wrong[0].remedy.endswith("pip install 'ray[train]>=2.60,<2.62'")


def test_more_workers_than_cpus_are_refused_as_train_does_and_gpus_not_there_warned_of(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    many = command.workers(ClusterConfig(num_workers=9000))
    with pytest.raises(ConfigError) as caught:
        session.check_resources(ClusterConfig(num_workers=9000))
    assert many.refused
    assert str(many).endswith(f"\n  refused: {caught.value}")
    assert not command.workers(ClusterConfig(num_workers=1)).refused
    one = command.workers(ClusterConfig(num_workers=1)).value
    assert one.startswith("1 worker on a Ray started here, each 1 CPU, 1 thread, 0 GPUs")
    assert "1 to 2 workers on" in command.workers(ClusterConfig(num_workers=(1, 2))).value
    assert "without Ray" in command.workers(ClusterConfig(num_workers=0)).value
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "set 0" in command.gpus(ClusterConfig(gpus_per_worker=1)).remedy
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    assert "this torch is not for it" in command.gpus(ClusterConfig()).remedy


@pytest.mark.parametrize("flags", [["avx2"], ["avx2", "amx_tile", "amx_bf16"]])
def test_bf16_on_a_processor_without_it_is_a_warning(monkeypatch, tiny_experiment, flags):
    monkeypatch.setattr(machine, "cpu_flags", lambda: flags)
    experiment = tiny_experiment("set_vae", {"train.precision": "bf16"})
    assert bool(command.cpu_kind(experiment).remedy) == ("amx_bf16" not in flags)
