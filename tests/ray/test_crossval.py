"""Cross-validation as parallel tasks of Ray; what it writes is in tests/unit/commands/crossval."""

import pandas as pd
import pytest

from ehr_ray.commands.crossval.command import crossval
from ehr_ray.errors import InputError

pytestmark = pytest.mark.ray
PLAN = {"crossval.folds": 2, "crossval.repeats": 1, "evaluation.task": "outcome"}


def test_folds_run_as_tasks_of_ray_and_a_command_that_was_cut_off_goes_on(make, cluster):
    experiment = make("set_vae", **PLAN, name="folds")
    lines = crossval(experiment)
    scores = pd.read_csv(experiment.directory / "folds.csv")
    assert scores.query("model == 'model'")["fold"].tolist() == [0, 1]
    (experiment.directory / "jobs" / "model-r0-f1-m0.parquet").unlink()
    said: list[str] = []
    assert crossval(experiment, say=said.append) == lines
    assert said[0] == "2 fold jobs, 1 of them done before"


def test_an_error_of_a_task_comes_back_as_it_was_raised(make, cluster):
    experiment = make("set_vae", **PLAN, name="lost", init_from="runs/absent")
    with pytest.raises(InputError, match="runs/absent"):
        crossval(experiment)
