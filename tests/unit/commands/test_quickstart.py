"""The quickstart in this process, on few patients; jobs/test_readme.py runs it whole."""

import contextlib
from functools import partial
from pathlib import Path

import pytest
from killed import Killed

from ehr_ray.commands import quickstart as command
from ehr_ray.commands.expand import expand
from ehr_ray.commands.ingest import ingest
from ehr_ray.commands.quickstart import quickstart, quickstart_experiment
from ehr_ray.config.yaml_files import override
from ehr_ray.errors import InputError
from ehr_ray.experiment import dump, parse
from ehr_ray.runtime.screen import Screen


def small(cohort, runs):
    """The quickstart's experiment with what takes time left out."""
    changes = {
        "train.max_steps": 2,
        "cluster.num_workers": 0,
        "tracking.experiment": None,
        "evaluation.baselines": False,
        "evaluation.bootstrap": 10,
        "evaluation.hours": [24],
    }
    return parse(override(dump(quickstart_experiment(cohort, runs)), changes))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a space in its name, where each step runs in this process."""
    folder = tmp_path / "first try"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(command, "session", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(command, "quickstart_experiment", small)
    few = partial(ingest, options={"patients": 60}, cpus=1)
    monkeypatch.setattr("ehr_ray.commands.ingest.ingest", few)
    monkeypatch.setattr("ehr_ray.commands.expand.expand", partial(expand, on_ray=False))
    return folder


STEPS = (
    "ingest.finish",
    "expand.claim",
    "expand.run_shards",
    "train.command.fit_here",
    "evaluate.command.fit_task",
)
"""In the order of the quickstart: what is under way in each of its steps when it is killed."""


def test_one_that_was_killed_in_each_of_its_steps_goes_on(here, monkeypatch, capsys):
    def kill(*_, **__):
        raise Killed

    for step in STEPS:
        with monkeypatch.context() as patch:
            patch.setattr(f"ehr_ray.commands.{step}", kill)
            with pytest.raises(Killed):
                quickstart(Path("quickstart"), screen=Screen())
    report = quickstart(Path("quickstart"), screen=Screen())
    assert report.is_file()
    assert "open quickstart/runs/quickstart/report.html" in capsys.readouterr().err
    assert not list((here / "quickstart").glob(".*"))


def test_a_folder_of_something_else_is_refused(here):
    (here / "quickstart").mkdir()
    (here / "quickstart" / "thesis.tex").touch()
    with pytest.raises(InputError, match="--output quickstart: not empty; choose another folder"):
        quickstart(Path("quickstart"), screen=Screen())
    assert [path.name for path in (here / "quickstart").iterdir()] == ["thesis.tex"]
