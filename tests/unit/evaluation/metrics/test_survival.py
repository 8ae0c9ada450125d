import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from ehr_ray.evaluation.metrics.survival import best_f1_threshold, c_index, f1, weighted_scores


def test_concordance_of_three_patients_by_hand():
    """Events at 1 and 3, one lost at 2: comparable are (1, 2), (1, 3)."""
    days, state = np.array([1.0, 2, 3]), np.array([1, 0, 1])
    assert c_index(days, state, np.array([3.0, 2, 1])) == 1
    assert c_index(days, state, np.array([2.0, 3, 1])) == 0.5
    assert c_index(days, state, np.array([2.0, 2, 1])) == 0.75
    assert np.isnan(c_index(days, np.zeros(3), np.arange(3.0)))


def test_a_competing_event_is_no_event_but_ends_the_time():
    days, state = np.array([1.0, 2]), np.array([2, 1])
    assert np.isnan(c_index(days, state, np.array([1.0, 0])))
    assert c_index(np.array([1.0, 2]), np.array([1, 2]), np.array([1.0, 0])) == 1


def test_weights_of_one_give_the_usual_scores_and_unknown_rows_do_not_count():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, 80), rng.random(80)
    weight = np.where(np.arange(80) < 60, 1.0, 0.0)
    found = weighted_scores(np.where(weight > 0, y, -1), p, weight)
    assert found["auroc"] == pytest.approx(roc_auc_score(y[:60], p[:60]))
    assert found["brier"] == pytest.approx(brier_score_loss(y[:60], p[:60]))


def test_doubling_a_weight_is_doubling_a_row():
    y, p = np.array([0, 1, 1, 0]), np.array([0.2, 0.9, 0.1, 0.15])
    found = weighted_scores(y, p, np.array([1.0, 1, 2, 1]))
    assert found["auroc"] == pytest.approx(roc_auc_score([*y, 1], [*p, 0.1]))


def test_the_threshold_has_the_highest_f1_there_is():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 200)
    p = np.clip(0.4 * y + 0.6 * rng.random(200), 0, 1)
    cut = best_f1_threshold(y, p)
    every = max(f1_score(y, p >= c) for c in np.unique(p))
    assert f1(y, p >= cut) == pytest.approx(every)
    assert best_f1_threshold(np.zeros(3), p[:3]) == 0.5
