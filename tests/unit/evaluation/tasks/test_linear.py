import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ehr_ray.evaluation.tasks.linear import fit_multinomial, fit_ridge


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 5)), rng


def test_ridge_finds_a_line_through_missing_values_and_says_its_strength(rows):
    x, rng = rows
    y = 40 + 6 * x[:, 0] + rng.normal(0, 0.5, 300)
    x[::7, 1] = np.nan
    found = fit_ridge(x[:200], y[:200], x[200:250], y[200:250], tabular=True)
    assert np.abs(found.model.predict(x[250:]) - y[250:]).mean() < 1.2
    assert found.chosen["alpha"] <= 10
    noise = rng.permutation(y)
    told = fit_ridge(x[:200], noise[:200], x[200:250], noise[200:250])
    assert told.chosen["alpha"] > found.chosen["alpha"]


def test_multinomial_regression_tells_classes_apart_and_gives_a_missing_one_nothing(rows):
    x, _ = rows
    y = np.digitize(x[:, 0], [-0.5, 0.5])
    y[y == 2] = 3
    found = fit_multinomial(x[:200], y[:200], x[200:250], y[200:250], 4)
    probability = found.model.predict(x[250:])
    np.testing.assert_allclose(probability.sum(1), 1)
    assert (probability[:, 2] == 0).all()
    assert (probability.argmax(1) == y[250:]).mean() > 0.8


def test_train_of_one_class_gives_it_to_everybody(rows):
    x, _ = rows
    found = fit_multinomial(x, np.ones(300, int), x, np.ones(300, int), 3)
    assert found.model.predict(x[:2]).tolist() == [[0, 1, 0], [0, 1, 0]]
    assert "one class only" in found.notes[0]


@pytest.mark.parametrize("names", [2, 3])
def test_the_arrays_say_what_the_library_says(rows, names):
    x, rng = rows
    y = np.digitize(x[:, 0] + rng.normal(0, 0.5, 300), [-0.5, 0.5][: names - 1])
    found = fit_multinomial(x[:200], y[:200], x[200:], y[200:], names)
    z = found.model.standardise(x)
    theirs = LogisticRegression(C=found.chosen["c"], max_iter=1000).fit(z[:200], y[:200])
    np.testing.assert_allclose(found.model.predict(x), theirs.predict_proba(z), atol=1e-9)
