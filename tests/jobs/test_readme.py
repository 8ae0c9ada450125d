"""The README's commands are run as they stand, in the order they stand."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
P12 = ROOT.parent / "shared" / "data" / "physionet2012"


def commands(heading: str) -> list[str]:
    """Return the lines of the first shell block under a heading."""
    text = (ROOT / "README.md").read_text()
    section = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.search(r"```bash\n(.*?)```", section, re.DOTALL).group(1).strip().splitlines()


def shell(command: str, place: Path) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(
        command, shell=True, cwd=place, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.ray
def test_quickstart_ends_with_a_report(tmp_path):
    install, quickstart = commands("Install")
    assert install == "pip install -e ."
    done = shell(quickstart, tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "quickstart" / "runs" / "quickstart"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["held_out/auroc"] > 0.6
    assert metrics["held_out/reconstruction/visible/r2"] > 0.2
    assert (run / "report.html").is_file()
    assert "Traceback" not in done.stderr


@pytest.mark.ray
def test_configuration_commands_run(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = commands("Configuration")
    assert [line.split()[1] for line in lines] == ["ingest", "train", "evaluate"]
    for line in lines:
        done = shell(line, tmp_path)
        assert done.returncode == 0, done.stderr


@pytest.mark.ray
def test_commands_on_real_patients_run(tmp_path):
    if not P12.is_dir():
        pytest.skip("needs the PhysioNet 2012 files beside the repository, in shared/data")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "physionet2012").symlink_to(P12)
    ingest, expand, train, evaluate, embed = commands("Real patients: PhysioNet 2012")
    small = "train.max_steps=4 train.report_steps=2 evaluation.max_patients=50"
    for line in (ingest, expand, f"{train} {small}"):
        done = shell(line, tmp_path)
        assert done.returncode == 0, done.stderr
    assert "8,000 patients" in shell(expand, tmp_path).stderr
    assert "evaluate" in evaluate
    assert "embed" in embed


@pytest.mark.ray
@pytest.mark.slow
def test_all_commands_on_real_patients_run_in_full(tmp_path):
    if not P12.is_dir():
        pytest.skip("needs the PhysioNet 2012 files beside the repository, in shared/data")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "physionet2012").symlink_to(P12)
    for line in commands("Real patients: PhysioNet 2012"):
        done = shell(line, tmp_path)
        assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "runs" / "set_vae" / "metrics.json").read_text())
    assert metrics["held_out/auroc"] > 0.8
    assert metrics["held_out/latent/active_units"] > 0
    assert metrics["held_out/reconstruction/hidden_live/r2"] > 0


def test_every_verb_of_the_readme_exists_and_none_is_missing():
    from ehr_ray.cli.main import build_parser

    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"^\| `ehr-ray ([\w-]+)` \|", text, re.MULTILINE))
    verbs = build_parser()._subparsers._group_actions[0].choices
    assert named == set(verbs)
