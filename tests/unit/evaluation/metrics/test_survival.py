import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from ehr_ray.evaluation.metrics.survival import c_index, concordance, time_in_bins, weighted_scores


def of_every_pair(days, state, risk):
    """Concordance by its definition, over all pairs."""
    right = comparable = 0.0
    for i in np.flatnonzero((state == 1) & np.isfinite(days)):
        for j in np.flatnonzero(np.isfinite(days)):
            if days[j] > days[i] or (days[j] == days[i] and state[j] != 1):
                comparable += 1
                right += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    return right / comparable if comparable else np.nan


@pytest.mark.parametrize("days_apart", [2, 6, 1000])
@pytest.mark.parametrize("risks_apart", [1, 4, 1000])
def test_concordance_is_that_of_every_pair_with_ties_and_censoring(days_apart, risks_apart):
    rng = np.random.default_rng(days_apart + risks_apart)
    for size in (0, 1, 2, 3, 17, 32, 50):
        days = rng.integers(0, days_apart, size).astype(float)
        days[rng.random(size) < 0.1] = np.nan
        state, risk = rng.integers(0, 3, size), 0.1 * rng.integers(0, risks_apart, size)
        expected = of_every_pair(days, state, risk)
        assert c_index(days, state, risk) == pytest.approx(expected, nan_ok=True)


def test_concordance_of_many_patients_needs_no_table_of_pairs():
    """Two hundred thousand: a table of their pairs would have 40 billion cells."""
    rng = np.random.default_rng(0)
    risk = rng.normal(size=200_000)
    days = rng.exponential(np.exp(-risk))
    found = c_index(days, (rng.random(risk.size) < 0.7).astype(int), risk)
    # Of two exponential times the one of hazard exp(a) is the shorter with probability
    # 1 / (1 + exp(b - a)).
    apart = np.abs(rng.normal(scale=np.sqrt(2), size=10**6))
    assert found == pytest.approx(float(np.mean(1 / (1 + np.exp(-apart)))), abs=0.003)


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


def test_weighted_concordance_is_that_of_the_rows_drawn():
    rng = np.random.default_rng(5)
    days, state = rng.integers(0, 9, 40).astype(float), rng.integers(0, 2, 40)
    risk, weights = 0.1 * rng.integers(0, 9, 40), rng.integers(0, 3, (4, 40))
    drawn = [np.repeat(np.arange(40), w) for w in weights]
    expected = [c_index(days[i], state[i], risk[i]) for i in drawn]
    np.testing.assert_allclose(concordance(days, state, risk)(weights.astype(float)), expected)
    nobody = concordance(days, np.zeros(40), risk)(np.ones((1, 40)))
    assert np.isnan(nobody).all()


def test_time_in_bins_adds_up_and_the_last_bin_has_no_end():
    time = np.array([0.0, 1.0, 2.5, 100.0])
    spent = time_in_bins(time, (1.0, 4.0))
    np.testing.assert_allclose(spent.sum(1), time)
    np.testing.assert_allclose(spent[2:], [[1, 1.5, 0], [1, 3, 96]])


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
