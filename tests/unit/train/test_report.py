import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from ehr_ray.family import Diagnose, Training
from ehr_ray.registry import get_family
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import Progress
from ehr_ray.train.report import Run, Watch, warnings_of

PER_EPOCH = 3
"""Steps of the synthetic cohort's epoch at the tiny config's batch size."""


@pytest.fixture
def make_run(tiny_experiment, make_loader, synthetic_vocabulary):
    def make(rank=0, **changes):
        experiment = tiny_experiment(changes={f"train.{k}": v for k, v in changes.items()})
        backend, told = LocalBackend(), []
        backend.rank = rank
        loader, watch = make_loader(experiment), Watch(on_lines=told.append)
        family, folder = get_family("set_vae"), Path("run")
        return Run(experiment, family, synthetic_vocabulary, loader, backend, folder, watch), told

    return make


@pytest.mark.parametrize(
    ("changes", "total", "every"),
    [
        ({"max_epochs": 4}, 4 * PER_EPOCH, PER_EPOCH),
        ({"max_epochs": 4, "max_steps": 5, "report_steps": 2}, 5, 2),
        ({"max_epochs": 1, "max_steps": 50}, PER_EPOCH, PER_EPOCH),
    ],
)
def test_a_plan_ends_at_its_epochs_or_steps_and_reports_each_epoch_unless_told(
    make_run, changes, total, every
):
    run, _ = make_run(**changes)
    assert run.loader.steps_per_epoch == PER_EPOCH
    assert (run.total_steps, run.report_steps) == (total, every)


def test_lines_are_told_by_the_first_rank_alone(make_run):
    for rank, expected in ((0, [["look"]]), (1, [])):
        run, told = make_run(rank)
        run.tell(["look"])
        assert told == expected


@pytest.mark.parametrize(
    ("finished", "warmup", "steps"), [(False, 3, [4, 6]), (False, 9, []), (True, 9, [6])]
)
def test_a_family_warns_of_reports_after_warm_up_or_of_the_last(finished, warmup, steps):
    def warn(reports):
        return [f"{row['depth']:g} at {row['step']}" for row in reports]

    diagnose = Diagnose(lambda *_: {}, warn)
    family = dataclasses.replace(get_family("set_vae"), training=Training(diagnose=diagnose))
    reports = pd.DataFrame({"step": [2, 4, 6], "val/depth": [1.0, 2.0, 3.0]})
    progress = Progress(step=6, finished=finished)
    lines = [f"{step / 2:g} at {step}" for step in steps]
    assert warnings_of(family, reports, warmup, progress) == lines
    assert warnings_of(get_family("set_vae"), reports, warmup, progress) == []
