import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from ehr_ray.evaluation.metrics.regression import METRICS, statistics


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 12, 60).astype(float)  # with ties
    return y, np.round(y + rng.normal(0, 3, 60))


def test_weights_count_rows_as_often_as_they_say(rows):
    y, p = rows
    weight = np.random.default_rng(1).integers(0, 4, (3, len(y)))
    functions = statistics(y, p)
    assert tuple(functions) == METRICS
    for k, counts in enumerate(weight):
        a, b = np.repeat(y, counts), np.repeat(p, counts)
        expected = {
            "mae": mean_absolute_error(a, b),
            "rmse": root_mean_squared_error(a, b),
            "r2": r2_score(a, b),
            "spearman": spearmanr(a, b).statistic,
        }
        found = {name: f(weight.astype(float))[k] for name, f in functions.items()}
        assert found == pytest.approx(expected)


def test_equal_labels_have_no_r2_and_equal_predictions_no_rank():
    weight = np.ones((1, 5))
    flat = statistics(np.full(5, 0.1), np.arange(5.0))
    assert np.isnan(flat["r2"](weight)[0])
    assert np.isnan(flat["spearman"](weight)[0])
    told = statistics(np.arange(5.0), np.full(5, 0.1))
    assert np.isnan(told["spearman"](weight)[0])
    assert told["r2"](weight)[0] < 0
