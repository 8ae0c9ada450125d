import numpy as np
import pytest
from scipy.optimize import brentq

from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.zero_shot import (
    Drawn,
    fitted_beside,
    wilson,
    zero_shot_result,
    zero_shot_table,
)
from ehr_ray.events.zero_shot import ZeroShot

DRAWS = 50


def split(n, seed, features=True):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal(n)
    label = signal + rng.standard_normal(n) > 0
    x = np.column_stack([signal, rng.standard_normal(n)]).astype(np.float32)
    return Split(
        subject_id=np.arange(n),
        prediction_time=np.zeros(n, "datetime64[us]"),
        label=label,
        embedding=x,
        features=x if features else None,
    )


@pytest.fixture(scope="module")
def judged():
    return split(80, 2)


@pytest.fixture(scope="module")
def drawn(judged):
    rng = np.random.default_rng(3)
    chance = 1 / (1 + np.exp(-judged.embedding[:, 0]))
    occurred = rng.binomial(DRAWS, chance)
    return Drawn(occurred=occurred, cut=np.zeros(80, np.int64), seconds=8.0, left_out=5)


@pytest.mark.parametrize(("count", "draws"), [(0, 10), (3, 10), (10, 10), (250, 1000)])
def test_the_interval_holds_all_shares_that_are_within_two_standard_errors(count, draws):
    """Its bounds are where the score of the count is 1.96 (Wilson 1927), by search."""
    low, high = (float(bound) for bound in wilson(np.array(count), draws))

    def score(p):
        return (count / draws - p) ** 2 - 1.959964**2 * p * (1 - p) / draws

    share = count / draws
    assert low == pytest.approx(brentq(score, 0, share - 1e-6) if share else 0.0, abs=1e-6)
    assert high == pytest.approx(brentq(score, share + 1e-6, 1) if share < 1 else 1.0, abs=1e-6)


def test_what_was_drawn_is_measured_beside_what_was_fitted(judged, drawn):
    asked = ZeroShot(code="X", hours=6, draws=DRAWS)
    beside = fitted_beside(split(200, 0), split(60, 1), judged, seed=0)
    assert set(beside) == {"prevalence", "probe", "gbm"}
    found = zero_shot_result(asked, drawn, judged, beside, "held_out", num_bootstrap=50)
    at, metrics = "held_out/zero_shot", found.metrics
    assert (metrics[f"{at}/n"], metrics[f"{at}/left_out"]) == (80, 5)
    assert metrics[f"{at}/positive"] == judged.label.sum()
    assert 0.6 < metrics[f"{at}/auroc/low"] < metrics[f"{at}/auroc"] < 0.95
    assert metrics[f"baseline/prevalence/{at}/auroc"] == 0.5
    assert metrics[f"{at}/mean_probability"] == pytest.approx(drawn.occurred.mean() / DRAWS)
    gap = metrics[f"baseline/probe/{at}/auroc_difference"]
    assert gap == pytest.approx(
        metrics[f"{at}/auroc"] - metrics[f"baseline/probe/{at}/auroc"], abs=1e-9
    )
    table = found.sections["Zero-shot: X within 6 hours"]
    assert [row[-1] for row in table.rows] == ["0.1", "", "", ""]
    assert not any("seconds" in key for key in metrics)
    assert "5 left out" in found.lines[0]
    assert "0.1 CPU s a prediction" in found.lines[1]
    assert len(found.lines) == 2


def test_futures_that_were_cut_are_told(judged, drawn):
    asked = ZeroShot(code="X", hours=6, draws=DRAWS, events=9)
    cut = Drawn(occurred=drawn.occurred, cut=np.full(80, 2), seconds=1.0, left_out=0)
    found = zero_shot_result(asked, cut, judged, {}, "held_out", num_bootstrap=10)
    assert found.metrics["held_out/zero_shot/cut"] == 160
    assert "note: 160 of 4,000 futures were cut at 9 events" in found.lines[-1]


def test_each_prediction_has_its_interval_by_draws(judged, drawn):
    table = zero_shot_table(ZeroShot(code="X", hours=6, draws=DRAWS), drawn, judged)
    rows = table.to_pylist()
    assert [row["happened"] for row in rows] == judged.label.tolist()
    assert all(row["low"] <= row["probability"] <= row["high"] for row in rows)
    assert rows[0]["probability"] == drawn.occurred[0] / DRAWS


def test_without_rows_or_of_one_class_it_is_said(judged, drawn):
    asked = ZeroShot(code="X", hours=6, draws=DRAWS)
    none = np.zeros(0, np.int64)
    empty = Drawn(occurred=none, cut=none, seconds=0.0, left_out=7)
    nobody = split(0, 0)
    assert fitted_beside(nobody, split(60, 1), nobody, seed=0) == {}
    found = zero_shot_result(asked, empty, nobody, {}, "held_out", num_bootstrap=10)
    assert found.lines == (
        "zero-shot, X within 6 h: nothing to judge (7 left out, whose record tells no answer)",
    )
    assert dict(found.sections) == {}
    all_of_them = Split(
        subject_id=judged.subject_id,
        prediction_time=judged.prediction_time,
        label=np.ones(80, bool),
        embedding=judged.embedding,
    )
    found = zero_shot_result(asked, drawn, all_of_them, {}, "held_out", num_bootstrap=10)
    assert "futures undefined" in found.lines[0]
    assert set(fitted_beside(split(90, 0, False), split(60, 1), judged, seed=0)) == {
        "prevalence",
        "probe",
    }
