"""How what the jobs left becomes scores."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from ehr_ray.commands.crossval.plan import FoldJob
from ehr_ray.commands.crossval.tables import (
    all_scores,
    joined_predictions,
    measures,
    report,
    tracked_metrics,
    write_fold_predictions,
)
from ehr_ray.evaluation.tasks.fold_scores import spread


@pytest.fixture
def job(tmp_path, tiny_experiment):
    (tmp_path / "jobs").mkdir()
    nobody = np.zeros(0, np.int64), np.zeros(0, np.int8)
    return FoldJob("model", 0, 0, 0, tiny_experiment(), ("death",), True, *nobody, tmp_path)


def leave(job, probability, metrics=None):
    """Write what a job leaves: two tuning and two test rows of one subject each."""
    rows = pd.DataFrame(
        {
            "subject_id": [1, 2, 3, 3],
            "prediction_time": pd.to_datetime([0, 0, 0, 1], unit="s"),
            "label": [False, True, False, True],
            "probability": probability,
            "model": job.name,
            "outcome": "death",
            "part": ["tuning", "tuning", "held_out", "held_out"],
        }
    )
    rows.to_parquet(job.target)
    (job.folder / f"{job.key}.json").write_text(json.dumps(metrics or {}))


def test_members_are_averaged_row_by_row_and_the_threshold_is_of_tuning(job):
    second = dataclasses.replace(job, member=1)
    leave(job, [0.1, 0.5, 0.2, 0.9])
    leave(second, [0.2, 0.6, 0.4, 0.5])
    test = joined_predictions([job, second])
    assert test["probability"].tolist() == pytest.approx([0.3, 0.7])
    assert test["threshold"].between(0.2, 0.5).all()
    assert all_scores([job, second], test)["f1"].tolist() == [1.0]


def test_measures_of_all_patients_count_before_those_of_the_labelled(job):
    metrics = {
        "death": {"held_out/auroc": 0.7, "held_out/death/c_index": 0.1},
        "none": {
            "held_out/death/c_index": 0.6,
            "baseline/forest/held_out/death/c_index": 0.5,
            "held_out/imputation/r2": 0.2,
            "held_out/imputation/r2/low": 0.1,
        },
    }
    assert list(measures(metrics, job)) == [
        ("model", "death", "c_index", 0.6),
        ("forest", "death", "c_index", 0.5),
        ("model", "", "imputation/r2", 0.2),
    ]


def test_details_of_the_comparison_are_no_measures_of_their_own(job):
    part = dataclasses.replace(job, whole=False)
    found = {
        "held_out/auroc": 0.7,
        "held_out/auroc/low": 0.6,
        "baseline/gbm/held_out/auroc": 0.7,
        "baseline/gbm/held_out/auroc/seed_mean": 0.7,
        "held_out/latent/active": 3.0,
    }
    assert list(measures({"death": found}, part)) == [("model", "death", "latent/active", 3.0)]


def test_the_report_warns_of_weights_that_may_know_the_test_patients(job):
    leave(job, [0.1, 0.5, 0.2, 0.9], {"none": {"held_out/death/c_index": 0.6}})
    scores = all_scores([job], joined_predictions([job]))
    table = spread(scores)
    text = report(job.experiment, [job], scores, table)
    assert "note:" not in text
    assert "c_index" in text
    started = dataclasses.replace(job.experiment, init_from="runs/other")
    assert "runs/other" in report(started, [job], scores, table)
    assert tracked_metrics(table)["death/model/c_index/mean"] == 0.6


def test_predictions_of_former_folds_go_and_those_of_an_evaluation_stay(job, tmp_path):
    leave(job, [0.1, 0.5, 0.2, 0.9])
    folder = tmp_path / "predictions"
    own = ("held_out.parquet", "baselines/trees/held_out.parquet")
    for name in (*own, "death/r4-f0.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("of before")
    write_fold_predictions(folder, joined_predictions([job]), tmp_path)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert there == {*own, "death/r0-f0.parquet"}
