"""Each job script, as a user runs it, on the tiny configuration."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]


def run(verb: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "jobs" / f"{verb}.py"), *map(str, arguments)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a cohort, and the commands of the README run in it one after the other."""
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def road(place):
    cohort = place / "cohorts" / "synthetic"
    config = ROOT / "configs" / "tiny" / "set_vae.yaml"
    steps = {
        "ingest": ["--source", "synthetic", "--patients", 100, "--output", cohort],
        "expand": [cohort, "--output", place / "expanded"],
        "prepare": [config, f"data.cohort={cohort}"],
        "train": [config, f"data.cohort={cohort}", "cluster.num_workers=2"],
        "evaluate": ["runs/tiny_set_vae"],
        "embed": ["runs/tiny_set_vae", "--cohort", cohort, "--output", "embeddings.parquet"],
    }
    return {verb: run(verb, *arguments, cwd=place) for verb, arguments in steps.items()}


@pytest.mark.parametrize("verb", ["ingest", "expand", "prepare", "train", "evaluate", "embed"])
def test_job_script_succeeds_and_says_what_it_did(road, verb):
    done = road[verb]
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr


def test_the_road_ends_with_a_report_and_embeddings(road, place):
    run_folder = place / "runs" / "tiny_set_vae"
    assert json.loads((run_folder / "metrics.json").read_text())["held_out/n"] > 0
    assert (run_folder / "report.html").stat().st_size > 100_000
    assert len(pd.read_parquet(place / "embeddings.parquet")) == 100


def test_train_again_has_nothing_to_do(road, place):
    config = ROOT / "configs" / "tiny" / "set_vae.yaml"
    again = run("train", config, f"data.cohort={place}/cohorts/synthetic", cwd=place)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
