"""`ray job submit` against a head started here, and the cluster file of `ray up`."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from ehr_ray.runtime.ingest import ingest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module")
def head():
    """Environment of a Ray head on this machine, in its own folder, on free ports."""
    folder = tempfile.mkdtemp(prefix="ehr")
    gcs, dashboard, listen, grpc, metrics, client, node, store = free_ports(8)
    token = Path(folder) / "token"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    token.write_text("0" * 64)
    token.chmod(0o600)
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "HEAD": f"127.0.0.1:{gcs}",
    }
    command = [RAY, "start", "--head", "--block", f"--port={gcs}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={listen}", f"--dashboard-agent-grpc-port={grpc}"]
    command += [f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}"]
    command += [f"--node-manager-port={node}", f"--object-manager-port={store}", "--num-cpus=4"]
    command += ["--min-worker-port=0", "--max-worker-port=0"]
    command += ["--object-store-memory=300000000", f"--temp-dir={folder}/ray"]
    command += ["--disable-usage-stats"]
    log = (Path(folder) / "log").open("w+")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 90
        while _ray(environment, "job", "list").returncode != 0:
            assert process.poll() is None, (log.seek(0), log.read())
            assert time.monotonic() < deadline
            time.sleep(1)
        yield environment
    finally:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for each in family:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _ray(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [RAY, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_a_submitted_training_ends_succeeded(head, tmp_path):
    ingest("synthetic", None, tmp_path / "cohort", options={"patients": 60})
    job = f"{sys.executable} jobs/train.py configs/tiny/set_vae.yaml data.cohort={tmp_path}/cohort"
    job += f" output={tmp_path}/runs cluster.num_workers=2 tracking.experiment=null"
    done = _ray(
        head, "job", "submit", "--submission-id", "train", "--working-dir", ".", "--", *job.split()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in _ray(head, "job", "status", "train").stdout.upper()
    assert "epoch 2" in _ray(head, "job", "logs", "train").stdout
    assert (tmp_path / "runs" / "tiny_set_vae" / "checkpoint" / "model.safetensors").is_file()


def test_a_failing_job_says_why_and_exits_with_an_error(head):
    job = [sys.executable, "jobs/train.py", "configs/tiny/set_vae.yaml", "train.lr=-1"]
    done = _ray(head, "job", "submit", "--working-dir", ".", "--", *job)
    assert done.returncode != 0
    assert "train.lr: input should be greater than 0" in done.stdout


def _status(environment: dict[str, str], token: str | None) -> int:
    request = urllib.request.Request(environment["RAY_API_SERVER_ADDRESS"] + "/api/jobs/")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_a_token_opens_the_job_server(head):
    assert _status(head, None) == 401
    assert _status(head, "1" * 64) in (401, 403)
    assert _status(head, "0" * 64) == 200


def test_a_cluster_that_asks_for_a_token_says_so_to_who_has_none(head, tmp_path):
    ingest("synthetic", None, tmp_path / "cohort", options={"patients": 20})
    environment = {k: v for k, v in head.items() if not k.startswith("RAY_")}
    environment |= {"RAY_py_gcs_connect_timeout_s": "3"}  # 30 otherwise
    command = [sys.executable, "jobs/train.py", "configs/tiny/set_vae.yaml"]
    command += ["cluster.num_workers=1"]
    command += [f"data.cohort={tmp_path}/cohort", f"output={tmp_path}/runs"]
    command += [f"cluster.address={head['HEAD']}", "tracking.experiment=null"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=180
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"cluster.address={head['HEAD']}: " in last, done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in last


def test_the_cluster_file_binds_its_dashboard_to_loopback():
    commands = yaml.safe_load((ROOT / "cluster.yaml").read_text())["head_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert starts
    assert all("--dashboard-host=127.0.0.1" in command for command in starts)


def test_the_cluster_file_is_valid_for_ray_up():
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(content))
    pools = content["available_node_types"]
    assert "GPU" in pools["train"]["resources"]
    assert "GPU" not in pools["data"]["resources"]
    content["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(content))
