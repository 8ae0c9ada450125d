import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from ehr_ray.evaluation.tasks.probe import sigmoid
from ehr_ray.evaluation.tasks.stacking import (
    PARTS,
    STACKED,
    fit_weights,
    stack,
    stacked_folds,
    weights_line,
)


def parts(n=4000, seed=0):
    """Logits of two parts that know half each, and of one that knows nothing and is confident."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(n, 2))
    label = rng.random(n) < sigmoid(truth.sum(1) - 1)
    return np.column_stack([truth - 0.5, 3 * rng.normal(size=n)]), label


def test_weights_are_those_of_a_logistic_regression_where_none_is_negative():
    logits, label = parts()
    weights = fit_weights(logits[:, :2], label)
    free = LogisticRegression(C=1e6).fit(logits[:, :2], label)
    np.testing.assert_allclose(weights, [*free.coef_[0], *free.intercept_], rtol=1e-2, atol=1e-2)
    assert stack(logits[:, :2], weights).mean() == pytest.approx(label.mean(), abs=1e-3)


def test_a_part_that_misleads_gets_no_weight_and_never_a_negative_one():
    logits, label = parts()
    against = np.column_stack([logits[:, :2], -logits[:, 0] + logits[:, 2]])
    assert LogisticRegression(C=1e6).fit(against, label).coef_[0, 2] != 0
    assert fit_weights(logits, label)[2] < 0.05
    wrong = np.column_stack([logits[:, 0], -logits[:, 1]])
    assert fit_weights(wrong, label)[1] == 0


def test_of_few_rows_the_weights_are_those_of_an_average():
    logits, label = parts(4)
    weights = fit_weights(0.01 * logits, label)
    np.testing.assert_allclose(weights[:3], 1 / 3, atol=0.02)


@pytest.fixture
def folds():
    logits, label = parts(1000)
    rows = pd.DataFrame(
        {
            "subject_id": np.arange(1000),
            "prediction_time": pd.Timestamp("2000-01-03"),
            "label": label,
            "outcome": "death",
            "repeat": 0,
            "fold": np.arange(1000) % 5,
            "threshold": 0.5,
        }
    )
    given = zip(("model", *PARTS), (logits[:, 0], *logits.T), strict=True)
    return pd.concat([rows.assign(model=name, probability=sigmoid(z)) for name, z in given])


def test_each_fold_is_stacked_by_what_the_others_teach(folds):
    """A fold's own outcomes change nothing of what is said of its patients."""
    found, weights = stacked_folds(folds)
    assert set(found["model"]) == {STACKED}
    assert sorted(found["subject_id"]) == list(range(1000))
    assert [*weights["death"]] == [*PARTS, "offset"]
    one = folds.assign(label=folds["label"] ^ (folds["fold"] == 2))
    again, _ = stacked_folds(one)
    told = [f[f["fold"] == 2].set_index("subject_id")["probability"] for f in (found, again)]
    pd.testing.assert_series_equal(*told)
    others = [f[f["fold"] == 1].set_index("subject_id")["probability"] for f in (found, again)]
    assert not np.allclose(*others)


def test_an_outcome_that_one_part_does_not_answer_is_not_stacked(folds):
    other = folds[folds["model"] != PARTS[0]].assign(outcome="readmission")
    found, weights = stacked_folds(pd.concat([folds, other]))
    assert set(weights) == set(found["outcome"]) == {"death"}
    found, weights = stacked_folds(other)
    assert found.empty
    assert not weights


def test_weights_are_written_as_a_config_takes_them():
    assert weights_line({"network": 0.51234, "gbm_rich": 0.0}) == "{network: 0.512, gbm_rich: 0}"
