import numpy as np
import pytest
from made_up_rows import features_and_outcomes
from sklearn.metrics import roc_auc_score

from ehr_ray.evaluation.tasks import trees
from ehr_ray.evaluation.tasks.trees import MIN_ROWS, TreeSettings, fit_trees

GRID = (TreeSettings(0.1, 8, 0.5), TreeSettings(0.1, 4, 0.5))


def predicted(fitted, x):
    return np.mean([member(x) for member in fitted.members], axis=0)


def test_what_is_not_linear_is_learnt():
    fitted = fit_trees(*features_and_outcomes(), grid=GRID, num_seeds=2)
    x, y = features_and_outcomes(seed=1)
    assert roc_auc_score(y, predicted(fitted, x)) > 0.85
    assert fitted.notes == ()


def test_sex_alone_is_found_among_hundreds_of_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 400)).astype(np.float32)
    sex = rng.integers(0, 2, 600)
    x[:, 123] = np.where(sex == 1, 1.0, np.nan)  # as the static column of `GENDER//M`
    y = (rng.random(600) < np.where(sex == 1, 0.6, 0.1)).astype(int)
    fitted = fit_trees(x[:400], y[:400], num_seeds=1)
    found = roc_auc_score(y[400:], predicted(fitted, x[400:]))
    assert found > roc_auc_score(y[400:], sex[400:]) - 0.03


def test_fitting_twice_gives_the_same_probabilities():
    x, y = features_and_outcomes(n=300)
    first, second = (predicted(fit_trees(x, y, grid=GRID, num_seeds=2), x) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_seeds_differ():
    x, y = features_and_outcomes()
    one, other = fit_trees(x, y, grid=GRID, num_seeds=2).members
    assert np.abs(one(x) - other(x)).max() > 0


def test_every_candidate_is_tried_and_the_better_one_taken():
    useless = TreeSettings(1e-6, 2, 0.5)
    x, y = features_and_outcomes()
    for grid in ((useless, GRID[0]), (GRID[0], useless)):
        chosen = fit_trees(x, y, grid=grid, num_seeds=1).chosen
        assert chosen["learning_rate"] == 0.1
        assert 1 < chosen["num_trees"] < trees.MAX_TREES


def test_noise_gets_few_trees():
    x, _ = features_and_outcomes()
    y = np.random.default_rng(5).integers(0, 2, len(x))
    assert fit_trees(x, y, grid=GRID, num_seeds=1).chosen["num_trees"] < 20


def test_below_some_rows_nothing_is_chosen_which_is_told():
    x, y = features_and_outcomes(n=MIN_ROWS - 1)
    fitted = fit_trees(x, y, grid=GRID, num_seeds=1)
    assert fitted.chosen["num_trees"] == GRID[0].default_trees
    assert any("default trees" in note for note in fitted.notes)
    assert roc_auc_score(y, predicted(fitted, x)) > 0.8


def test_too_few_rows_of_a_class_get_default_trees():
    x, _ = features_and_outcomes()
    y = np.zeros(len(x), int)
    y[: trees.FOLDS - 1] = 1
    fitted = fit_trees(x, y, grid=GRID, num_seeds=1)
    assert any("default trees" in note for note in fitted.notes)
    assert np.isfinite(predicted(fitted, x)).all()


@pytest.mark.parametrize("flat", ["label", "features"])
def test_nothing_to_learn_from_predicts_the_prevalence(flat):
    x, y = features_and_outcomes()
    x, y = (x, np.zeros_like(y)) if flat == "label" else (np.ones_like(x), y)
    fitted = fit_trees(x, y, grid=GRID)
    np.testing.assert_allclose(predicted(fitted, x), y.mean())
    assert len(fitted.notes) == 1
