import numpy as np
import pytest

from ehr_ray.evaluation.tasks.downstream import TaskScores
from ehr_ray.evaluation.tasks.external import calibration_result, drift_result
from ehr_ray.events.features import STATISTICS

DRAWS = {"num_bootstrap": 50, "seed": 0}


def scores(n=3000, slope=0.5):
    rng = np.random.default_rng(0)
    said = rng.normal(-1, 2, n)
    label = rng.random(n) < 1 / (1 + np.exp(-slope * said))
    p = 1 / (1 + np.exp(-said))
    return TaskScores(
        metrics={},
        probabilities={"held_out": {"model": p, "gbm": np.full(n, label.mean())}},
        uncalibrated={},
        labels={"held_out": label},
        thresholds={},
        subjects={"held_out": np.arange(n) // 2},
        verdicts=(),
    )


def test_calibration_is_told_with_intervals_for_model_and_trees():
    found = calibration_result(scores(), "held_out", **DRAWS)
    slope = [found.metrics[f"held_out/calibration_slope{end}"] for end in ("/low", "", "/high")]
    assert slope == sorted(slope)
    assert 0.4 < slope[1] < 0.6
    assert "baseline/gbm/held_out/calibration_in_the_large" in found.metrics
    assert not [name for name in found.metrics if "recalibration" in name]
    (table,) = found.sections.values()
    assert len(table.rows) == 2
    assert found.lines[0].startswith("calibration in the other cohort: slope 0.")


def test_a_refit_on_some_subjects_mends_the_risk_of_the_others():
    found = calibration_result(scores(), "held_out", share=0.3, **DRAWS)
    at = "held_out/recalibration"
    assert found.metrics[f"{at}/before/calibration_slope"] < 0.6
    assert found.metrics[f"{at}/after/calibration_slope"] == pytest.approx(1, abs=0.2)
    assert found.metrics[f"{at}/after/brier"] < found.metrics[f"{at}/before/brier"]
    assert found.metrics[f"{at}/brier_change/high"] < 0
    assert "rows: Brier" in found.lines[1]
    (table,) = found.sections.values()
    assert [row[0].split(", ")[-1] for row in table.rows][:2] == ["as it is", "refitted"]


def test_subjects_are_refitted_on_whole_and_too_few_are_told():
    given = scores(40)
    found = calibration_result(given, "held_out", share=0.05, **DRAWS)
    assert any("cannot be fitted on" in line and "--recalibrate" in line for line in found.lines)
    assert found.sections == {}


def test_drift_is_a_distance_of_distributions_by_variable():
    rng = np.random.default_rng(0)
    codes = ["same", "moved", "rare", "SEX"]
    home, there = (np.full((400, 4, len(STATISTICS)), np.nan) for _ in range(2))
    mean, count, static = (STATISTICS.index(name) for name in ("mean", "count", "static"))
    for table, shift, share in ((home, 0, 1.0), (there, 3, 0.5)):
        table[:, :, count] = 0
        size = int(400 * share)
        table[:size, 0, mean] = rng.normal(0, 1, size)
        table[:size, 1, mean] = rng.normal(shift, 1, size)
        table[:5, 2, mean] = 1
        table[:size, :2, count] = 1
        table[:, 3, static] = np.arange(400) < 200 + 40 * shift
    flat = [table.reshape(400, -1) for table in (home, there)]
    found = drift_result(codes, *flat, "held_out")
    distance = {c: found.metrics.get(f"held_out/drift/{c}/ks") for c in codes}
    assert distance["moved"] > 0.8 > 0.2 > distance["same"]
    assert distance["SEX"] == pytest.approx(0.3, abs=0.01)
    assert distance["rare"] is None
    assert found.metrics["held_out/drift/moved/measured"] == 0.5
    (table,) = found.sections.values()
    assert [row[0] for row in table.rows] == ["moved", "SEX", "same"]
    assert found.lines[0].startswith("drift of 3 variables: distance 0.3")
