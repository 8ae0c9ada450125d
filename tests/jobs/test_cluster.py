"""Jobs by `ray job submit` on a head started by hand, and the cluster file."""

import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from ehr_ray.commands.ingest import ingest
from ehr_ray.train.checkpoint import saved_progress

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
TINY = "configs/tiny"
LONG = ("train.max_epochs=4", "train.report_steps=2", "cluster.num_workers=2")
"""A run of seconds, so that there is a middle of it."""
SEARCH = ("name=sweep", "train.max_epochs=1", "tune.trials=2", "search={train.lr: [0.001, 0.002]}")


def steps(place: Path) -> list[dict[str, list[object]]]:
    """The arguments of each job script on a tiny cohort; those of one group need those before."""
    cohort, runs = place / "cohort", place / "runs"
    common = [f"data.cohort={cohort}", f"output={runs}", "tracking.experiment=null"]
    tiny = {name: f"{TINY}/{name}.yaml" for name in ("set_vae", "event_encoder", "event_decoder")}
    return [
        {"ingest": ["--source", "synthetic", "--patients", 120, "--output", cohort]},
        {
            "expand": [cohort, "--output", place / "expanded"],
            "prepare": [tiny["set_vae"], *common],
            "phrases": [tiny["event_encoder"], *common],
            "benchmark": ["--only", "lvcf", "--cohort", cohort, "--output", place / "lvcf.json"],
            "train": [tiny["set_vae"], *common, *LONG, "name=whole"],
            "tune": [tiny["set_vae"], *common, *SEARCH],
        },
        {
            "export-pt": [tiny["event_decoder"], *common, "--output", place / "pt"],
            "evaluate": [runs / "whole"],
            "embed": [runs / "whole", "--cohort", cohort, "--output", place / "embedded.parquet"],
        },
    ]


SLOW = {"quickstart", "crossval"}
"""Scripts that take a minute or more, and have tests of their own below."""
SCRIPTS = sorted(name for group in steps(Path()) for name in group)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


@pytest.fixture(scope="module")
def cohort(place):
    path = place / "patients"
    ingest("synthetic", None, path, options={"patients": 120}, cpus=1)
    return path


@pytest.fixture(scope="module")
def done(head, place):
    """Every job script, submitted; two at a time, as far as one does not need the other."""
    head.have_nodes(2)
    found = {}
    with ThreadPoolExecutor(2) as pool:
        for group in steps(place):
            waiting = {
                name: pool.submit(head.submit, name, name, *arguments)
                for name, arguments in group.items()
            }
            found |= {name: future.result() for name, future in waiting.items()}
    return found


@pytest.mark.slow
def test_every_job_script_is_submitted():
    """The list of scripts below is whole: a new verb is submitted too."""
    scripts = {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert scripts == {*SCRIPTS, *SLOW}


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_submitted_script_succeeds(done, script):
    """No verb needs more than a job has: a copy of the folder, and absolute paths of data."""
    assert done[script].returncode == 0, done[script].stdout + done[script].stderr
    assert "Traceback" not in done[script].stdout


@pytest.mark.slow
def test_submitted_scripts_leave_their_results_on_shared_storage(done, place, head):
    """What every verb makes as a job is the whole of it, in the place it was told."""
    assert (place / "cohort" / "metadata" / "codes.parquet").is_file()
    assert list((place / "expanded").rglob("*.parquet"))
    assert (place / "runs" / "whole" / "checkpoint" / "model.safetensors").is_file()
    assert (place / "runs" / "whole" / "report.html").is_file()
    assert (place / "runs" / "sweep" / "trials.parquet").is_file()
    assert len(list((place / "pt").rglob("*.pt"))) == 120
    for file in ("lvcf.json", "embedded.parquet"):
        assert (place / file).is_file()
    assert "SUCCEEDED" in head.ray("job", "status", "train").stdout.upper()
    assert "4" in [line.split()[0] for line in head.logs("train").splitlines() if line.strip()]


def test_a_failing_job_says_why_and_exits_with_an_error(head):
    done = head.submit("wrong", "train", f"{TINY}/set_vae.yaml", "train.lr=-1")
    assert done.returncode != 0
    assert "train.lr: input should be greater than 0" in done.stdout
    assert "FAILED" in head.ray("job", "status", "wrong").stdout.upper()


@pytest.mark.slow
def test_a_stopped_job_goes_on_when_it_is_submitted_again(head, cohort, place):
    """Status, logs and stop are those of the job; the same command succeeds from its last state.

    `test_readme.py` submits a job, and `ray/test_training.py` kills a program that goes on.
    """
    head.have_nodes(2)
    arguments = [f"{TINY}/set_vae.yaml", f"data.cohort={cohort}", f"output={place}/stopped"]
    arguments += ["tracking.experiment=null", *LONG, "train.max_epochs=8"]
    assert head.submit("first", "train", *arguments, wait=False).returncode == 0
    run = place / "stopped" / "tiny_set_vae"
    head.wait_for_step("first", run, 6)
    assert head.ray("job", "stop", "first").returncode == 0
    head.wait("first", "STOPPED")
    assert not saved_progress(run).finished
    again = head.submit("second", "train", *arguments)
    assert again.returncode == 0, again.stdout
    assert "resuming at step" in again.stdout
    assert saved_progress(run).finished
    assert "SUCCEEDED" in head.ray("job", "status", "second").stdout.upper()
    assert "resuming at step" in head.logs("second")


@pytest.mark.slow
def test_the_quickstart_is_submitted(head, tmp_path):
    """All verbs in one job, on a cluster it did not start, end with a report."""
    head.have_nodes(2)
    done = head.submit("quickstart", "quickstart", "--output", tmp_path / "quickstart")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "quickstart" / "runs" / "quickstart" / "report.html").is_file()


@pytest.mark.slow
def test_a_cross_validation_is_submitted(head, tmp_path):
    """Parallel folds inside one job find room on the nodes, and their results come back."""
    head.have_nodes(2)
    cohort, runs = tmp_path / "cohort", tmp_path / "runs"
    ingest("synthetic", None, cohort, options={"patients": 120})
    settings = [f"{TINY}/hcat.yaml", f"data.cohort={cohort}", f"output={runs}"]
    settings += ["model.survival.horizon_days=1.03", "model.recurrence.horizon_days=1.02"]
    settings += ["train.max_epochs=1", "--folds", "2", "--repeats", "1"]
    done = head.submit("crossval", "crossval", *settings)
    assert done.returncode == 0, done.stdout
    assert (runs / "tiny_hcat" / "folds.csv").is_file()


def _status(head, token: str | None) -> int:
    address = head.environment["RAY_API_SERVER_ADDRESS"]
    request = urllib.request.Request(f"{address}/api/jobs/")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_only_a_token_opens_the_job_server(head):
    assert _status(head, None) == 401
    assert _status(head, "1" * 64) in (401, 403)
    assert _status(head, "0" * 64) == 200


def test_a_cluster_that_asks_for_a_token_says_so_to_who_has_none(head, cohort, place):
    address = f"127.0.0.1:{head.gcs}"
    environment = {k: v for k, v in head.environment.items() if not k.startswith("RAY_")}
    environment |= {"RAY_py_gcs_connect_timeout_s": "3"}  # 30 otherwise
    command = [sys.executable, "jobs/train.py", f"{TINY}/set_vae.yaml", "cluster.num_workers=1"]
    command += [f"data.cohort={cohort}", f"output={place}/strange"]
    command += [f"cluster.address={address}", "tracking.experiment=null"]
    said = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert said.returncode == 2, said.stderr
    last = said.stderr.strip().splitlines()[-1]
    assert f"cluster.address={address}: " in last, said.stderr
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
    starts = [*content["head_start_ray_commands"], *content["worker_start_ray_commands"]]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2
    assert all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert "/home/ubuntu/.ray/auth_token" in content["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in starts[0]
    content["max_worker"] = 3
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(content))
