import numpy as np
import pytest

from ehr_ray.evaluation.metrics.conformal import PredictionSets
from ehr_ray.evaluation.report.tables import tidy_csv
from ehr_ray.evaluation.table import Interval
from ehr_ray.evaluation.tasks.downstream import TaskScores
from ehr_ray.evaluation.tasks.prediction_sets import prediction_set_result
from ehr_ray.evaluation.tasks.subgroups import TOO_FEW, Division

N = 400
SETS = PredictionSets(0.1, least_yes=0.3, most_no=0.5)


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    risk = rng.random(N)
    label = rng.random(N) < risk
    given = {"held_out": {"model": risk}}
    subject = {"held_out": np.arange(N)}
    return TaskScores({}, given, {}, {"held_out": label}, {}, subject, ())


def measured(scores, names, sets=SETS):
    division = Division("sex", ("female", "male"), names)
    return prediction_set_result(sets, [division], scores, "held_out", num_bootstrap=50)


def test_coverage_is_the_share_of_sets_that_hold_the_truth(scores):
    label, risk = scores.labels["held_out"], scores.probabilities["held_out"]["model"]
    metrics = measured(scores, ["female"] * 150 + ["male"] * 250).metrics
    held = np.where(label, risk >= 0.3, risk <= 0.5)
    for at, rows in (("", slice(None)), ("/sex/female", slice(150))):
        key = f"held_out/sets{at}"
        assert metrics[f"{key}/coverage"] == pytest.approx(held[rows].mean())
        positive = held[rows][label[rows]].mean()
        assert metrics[f"{key}/coverage_positive"] == pytest.approx(positive)
        assert (
            metrics[f"{key}/coverage/low"] <= held[rows].mean() <= metrics[f"{key}/coverage/high"]
        )
        both = ((risk[rows] >= 0.3) & (risk[rows] <= 0.5)).mean()
        assert metrics[f"{key}/both"] == pytest.approx(both)
        assert metrics[f"{key}/single"] == pytest.approx(1 - both)
        assert metrics[f"{key}/neither"] == 0


def test_a_small_group_has_no_numbers_and_a_small_class_no_coverage(scores):
    scores.labels["held_out"][:] = np.arange(N) % 100 == 0
    found = measured(scores, ["female"] * 12 + ["male"] * (N - 12))
    assert not [key for key in found.metrics if "female" in key]
    assert "held_out/sets/coverage_positive" not in found.metrics
    assert "held_out/sets/sex/male/coverage_negative" in found.metrics
    rows = {row[0]: row for row in found.sections["Prediction sets"].rows}
    assert rows["sex: female"][2:] == (TOO_FEW,) * 6
    assert isinstance(rows["everybody"][2], Interval)


def test_the_caption_tells_what_could_not_be_left_out(scores):
    caption = measured(scores, ["female"] * N).sections["Prediction sets"].caption
    assert "too few rows" not in caption
    assert "90% of the sets" in caption
    never = PredictionSets(0.1, least_yes=-np.inf, most_no=0.5)
    caption = measured(scores, ["female"] * N, never).sections["Prediction sets"].caption
    assert "Tuning has too few rows to leave out yes." in caption


def test_the_metrics_are_among_the_rows_of_results_csv(scores):
    metrics = measured(scores, ["female"] * N).metrics
    rows = [line.split(",")[:4] for line in tidy_csv(metrics).splitlines()]
    assert ["held_out", "sets", "model", "coverage"] in rows
    assert ["held_out", "sets/sex/female", "model", "both"] in rows
