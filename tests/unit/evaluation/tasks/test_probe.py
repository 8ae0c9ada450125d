import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.metrics.binary import binary_metrics
from ehr_ray.evaluation.tasks.probe import Probe, fit_platt, fit_probe, logit, sigmoid


def problem(seed=0, n=400, width=12, signal=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(3.0, 5.0, (n, width))
    risk = signal * (x[:, 0] - 3) / 5 + rng.normal(size=n) - 1
    return x, (risk > 0).astype(int)


def halves(x, y):
    middle = len(y) * 2 // 3
    return x[:middle], y[:middle], x[middle:], y[middle:]


def test_the_probe_is_logistic_regression_on_standardised_inputs():
    train_x, train_y, tuning_x, tuning_y = halves(*problem())
    probe, notes = fit_probe(train_x, train_y, tuning_x, tuning_y, c_grid=(0.1,))
    center, scale = train_x.mean(axis=0), train_x.std(axis=0)
    reference = LogisticRegression(C=0.1).fit((train_x - center) / scale, train_y)
    expected = reference.predict_proba((tuning_x - center) / scale)[:, 1]
    np.testing.assert_allclose(probe.predict(tuning_x, calibrated=False), expected, atol=1e-5)
    assert notes == ()


def test_c_is_the_one_with_the_best_tuning_auroc():
    train_x, train_y, tuning_x, tuning_y = halves(*problem(n=150, width=60))
    scores = {}
    for c in (1e-4, 1e-2, 1.0, 100.0):
        single, _ = fit_probe(train_x, train_y, tuning_x, tuning_y, c_grid=(c,))
        scores[c] = roc_auc_score(tuning_y, single.predict(tuning_x))
    probe, _ = fit_probe(train_x, train_y, tuning_x, tuning_y, c_grid=tuple(scores))
    assert scores[probe.c] == pytest.approx(max(scores.values()), abs=0.01)


def test_a_probe_survives_its_round_trip_through_arrays():
    train_x, train_y, tuning_x, tuning_y = halves(*problem())
    train_x[::7, 2] = np.nan
    for tabular in (False, True):
        probe, _ = fit_probe(train_x, train_y, tuning_x, tuning_y, tabular=tabular)
        arrays = probe.to_arrays()
        assert all(isinstance(a, np.ndarray) and a.dtype.kind in "fi" for a in arrays.values())
        again = Probe.from_arrays(arrays)
        np.testing.assert_array_equal(again.predict(tuning_x), probe.predict(tuning_x))
        assert again.threshold == probe.threshold


def test_calibration_lowers_the_brier_score_and_keeps_the_ranking():
    rng = np.random.default_rng(0)
    x, y = problem(n=4000, width=30, signal=2.0)
    train_x, train_y, rest_x, rest_y = halves(x, y)
    keep = (train_y == 1) | (rng.random(len(train_y)) < 0.2)  # train has another prevalence
    probe, _ = fit_probe(train_x[keep], train_y[keep], rest_x[:600], rest_y[:600])
    before, after = (probe.predict(rest_x[600:], calibrated=c) for c in (False, True))
    held = rest_y[600:]
    assert roc_auc_score(held, before) == pytest.approx(roc_auc_score(held, after), abs=1e-12)
    scores = [binary_metrics(held, p, threshold=0.5, num_bootstrap=2) for p in (before, after)]
    assert scores[1]["brier"] < scores[0]["brier"]
    assert scores[1]["ece"] < scores[0]["ece"]


def test_platt_recovers_a_known_distortion():
    rng = np.random.default_rng(1)
    true = rng.normal(0, 2, 50_000)
    y = rng.random(true.size) < sigmoid(true)
    slope, offset, note = fit_platt(true * 3 + 1, y)
    assert slope == pytest.approx(1 / 3, rel=0.05)
    assert offset == pytest.approx(-1 / 3, abs=0.05)
    assert note is None


def test_platt_never_turns_a_ranking_round():
    slope, offset, note = fit_platt(np.array([2.0, 1.0, -1.0, -2.0]), np.array([0, 0, 1, 1]))
    assert (slope, offset) == (1, 0)
    assert "not calibrated" in note


def test_platt_of_perfectly_separated_scores_stays_finite():
    slope, offset, _ = fit_platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite([slope, offset]).all()
    assert 0 < slope < 10


def test_tuning_of_one_class_falls_back_to_cross_validation_and_says_so():
    train_x, train_y, tuning_x, _ = halves(*problem())
    probe, notes = fit_probe(train_x, train_y, tuning_x, np.zeros(len(tuning_x)))
    assert any("cross-validation" in note for note in notes)
    assert any("not calibrated" in note for note in notes)
    assert roc_auc_score(train_y, probe.predict(train_x)) > 0.6


def test_train_of_one_class_predicts_its_prevalence_and_says_so():
    train_x, train_y, tuning_x, tuning_y = halves(*problem())
    probe, notes = fit_probe(train_x, np.zeros(len(train_y)), tuning_x, tuning_y)
    assert np.ptp(probe.predict(tuning_x)) == 0
    assert "one class" in notes[0]


def test_an_empty_tuning_split_does_not_crash():
    train_x, train_y, tuning_x, _ = halves(*problem())
    probe, notes = fit_probe(train_x, train_y, tuning_x[:0], np.zeros(0))
    assert np.isfinite(probe.predict(tuning_x)).all()
    assert notes


def test_columns_that_are_constant_or_never_seen_are_harmless():
    train_x, train_y, tuning_x, tuning_y = halves(*problem())
    train_x[:, 3], train_x[:, 4] = 1e8, np.nan
    for tabular in (False, True):
        probe, _ = fit_probe(train_x, train_y, tuning_x, tuning_y, tabular=tabular)
        assert np.isfinite(probe.predict(tuning_x)).all()
        assert probe.coef[3] == 0
        assert probe.coef[4] == 0


def test_missingness_is_an_input_once_for_columns_that_are_missing_together():
    rng = np.random.default_rng(0)
    x, _ = problem(n=600)
    absent = rng.random(600) < 0.4
    x[absent, 5] = x[absent, 6] = np.nan
    y = (absent ^ (rng.random(600) < 0.05)).astype(int)
    with_indicator, _ = fit_probe(*halves(x, y), tabular=True)
    without, _ = fit_probe(*halves(x, y))
    assert with_indicator.indicator.tolist() == [5]
    assert roc_auc_score(y, with_indicator.predict(x)) > 0.9
    assert roc_auc_score(y, without.predict(x)) < 0.7


def test_outliers_do_not_reach_a_tabular_model():
    train_x, train_y, tuning_x, tuning_y = halves(*problem())
    probe, _ = fit_probe(train_x, train_y, tuning_x, tuning_y, tabular=True)
    wild = tuning_x.copy()
    wild[:, 1] = 1e9
    assert np.abs(logit(probe.predict(wild)) - logit(probe.predict(tuning_x))).max() < 2


def test_principal_components_are_the_ones_of_the_covariance():
    train_x, train_y, tuning_x, tuning_y = halves(*problem(n=600, width=20))
    probe, _ = fit_probe(train_x, train_y, tuning_x, tuning_y, num_components=3, c_grid=(1.0,))
    z = (train_x - train_x.mean(axis=0)) / train_x.std(axis=0)
    u = np.linalg.svd(z, full_matrices=False)[0]
    scores = u[:, :3] * np.sqrt(len(z))
    expected = LogisticRegression(C=1.0, tol=1e-8).fit(scores, train_y).predict_proba(scores)[:, 1]
    np.testing.assert_allclose(probe.predict(train_x, calibrated=False), expected, atol=1e-3)


def test_more_inputs_than_rows_work():
    x, y = problem(n=90, width=300)
    for components in (None, 64):
        probe, _ = fit_probe(*halves(x, y), tabular=True, num_components=components)
        assert np.isfinite(probe.predict(x)).all()


def test_an_input_of_another_width_is_refused():
    probe, _ = fit_probe(*halves(*problem()))
    with pytest.raises(ValueError, match=r"\[N, 12\]"):
        probe.predict(np.zeros((3, 5)))


def test_a_wide_embedding_is_fitted_in_seconds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 256)) @ rng.normal(size=(256, 256)) / 16
    y = (x[:, 0] + rng.normal(size=3000) > 1).astype(int)
    start = time.perf_counter()
    fit_probe(*halves(x, y))
    assert time.perf_counter() - start < 15


def test_amounts_that_span_orders_of_magnitude_are_read_by_their_logarithm():
    rng = np.random.default_rng(0)
    amount = np.exp(rng.normal(3.0, 1.5, (900, 1)))
    risk = np.log(amount[:, 0]) - 3 + rng.normal(size=900) > 0
    x = np.hstack([amount, -amount, rng.normal(size=(900, 1))])
    x[::9] = np.nan
    probe, _ = fit_probe(*halves(x, risk.astype(int)), tabular=True)
    assert probe.logged.tolist() == [0]
    plain, _ = fit_probe(*halves(x, risk.astype(int)))
    assert plain.logged.size == 0
    # What was below 0 nowhere in train is 0 and no NaN elsewhere.
    assert np.isfinite(probe.predict(np.full((1, 3), -5.0))).all()
