"""The job scripts: each is the verb of its name."""

import runpy
import sys
from pathlib import Path

import pytest

from ehr_ray.cli.main import build_parser

JOBS = Path(__file__).parents[2] / "jobs"
VERBS = sorted(build_parser()._subparsers._group_actions[0].choices)


def test_every_verb_has_a_script_and_every_script_a_verb():
    assert sorted(path.stem for path in JOBS.glob("*.py")) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_a_script_is_the_verb_of_its_name(verb, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"jobs/{verb}.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(JOBS / f"{verb}.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith(f"usage: ehr-ray {verb} ")
