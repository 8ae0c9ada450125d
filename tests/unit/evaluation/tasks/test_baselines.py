import numpy as np
import pytest
from made_up_rows import features_and_outcomes
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.tasks.baselines import fit_average, fit_gbm, fit_linear, seed_spread
from ehr_ray.evaluation.tasks.trees import TreeSettings

GRID = (TreeSettings(0.1, 8, 0.5),)


def split(x, y):
    a, b = len(y) * 6 // 10, len(y) * 8 // 10
    return (x[:a], y[:a], x[a:b], y[a:b]), (x[b:], y[b:])


def test_trees_learn_what_logistic_regression_cannot():
    fit, (x, y) = split(*features_and_outcomes(n=1200))
    trees = fit_gbm(*fit, grid=GRID, num_seeds=2)
    linear = fit_linear("logistic", "features", *fit)
    assert roc_auc_score(y, trees.predict(x)) > 0.85
    assert roc_auc_score(y, linear.predict(x)) < 0.7


def test_the_ensemble_is_the_mean_of_its_seeds_and_their_spread_is_told():
    fit, (x, y) = split(*features_and_outcomes())
    trees = fit_gbm(*fit, grid=GRID, num_seeds=3)
    single = np.stack([member(x) for member in trees.members])
    np.testing.assert_allclose(trees.predict_raw(x), single.mean(axis=0))
    assert np.ptp(single, axis=0).max() > 0
    spread = seed_spread(single, y)
    assert spread["seed_min"] <= spread["seed_mean"] <= spread["seed_max"]
    assert spread["seed_min"] < spread["seed_max"]


@pytest.mark.parametrize("name", ["gbm", "logistic", "pca"])
def test_a_hundred_patients_with_more_features_than_rows_work(name):
    (train_x, train_y, tuning_x, tuning_y), (x, _) = split(*features_and_outcomes(n=100, width=300))
    arrays = (train_x, train_y, tuning_x, tuning_y)
    scorer = (
        fit_gbm(*arrays, grid=GRID, num_seeds=2)
        if name == "gbm"
        else fit_linear(name, "features", *arrays)
    )
    probability = scorer.predict(x)
    assert probability.shape == (20,)
    assert ((probability >= 0) & (probability <= 1)).all()


def test_train_of_one_class_predicts_the_prevalence():
    (train_x, train_y, tuning_x, tuning_y), (x, y) = split(*features_and_outcomes())
    trees = fit_gbm(train_x, np.zeros_like(train_y), tuning_x, tuning_y, grid=GRID)
    assert np.ptp(trees.predict(x)) == 0
    assert seed_spread(np.stack([member(x) for member in trees.members]), y) == {}
    assert any("one class" in note for note in trees.notes)


def test_tuning_chooses_nothing_of_the_trees_but_calibration_and_threshold():
    (train_x, train_y, tuning_x, tuning_y), (x, _) = split(*features_and_outcomes())
    first = fit_gbm(train_x, train_y, tuning_x, tuning_y, num_seeds=1)
    second = fit_gbm(train_x, train_y, tuning_x[::-1], 1 - tuning_y, num_seeds=1)
    assert first.chosen == second.chosen
    np.testing.assert_array_equal(first.predict_raw(x), second.predict_raw(x))
    assert not np.array_equal(first.predict(x), second.predict(x))


def test_tuning_of_one_class_leaves_the_trees_uncalibrated():
    (train_x, train_y, tuning_x, _), (x, _) = split(*features_and_outcomes())
    none = np.zeros(len(tuning_x), dtype=int)
    trees = fit_gbm(train_x, train_y, tuning_x, none, grid=GRID, num_seeds=1)
    assert trees.notes == ("not calibrated: tuning has one class only",)
    np.testing.assert_allclose(trees.predict(x), trees.predict_raw(x))


def test_the_average_is_of_calibrated_probabilities():
    fit, (x, _) = split(*features_and_outcomes())
    trees = fit_gbm(*fit, grid=GRID, num_seeds=1)
    linear = fit_linear("logistic", "features", *fit)
    both = fit_average("average", (trees, linear), *fit[2:])
    np.testing.assert_allclose(both.predict(x), (trees.predict(x) + linear.predict(x)) / 2)
    assert 0 < both.threshold < 1
    assert both.input == "features"
