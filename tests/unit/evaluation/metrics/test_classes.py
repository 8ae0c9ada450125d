import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score

from ehr_ray.evaluation.metrics.classes import METRICS, statistics


def test_weights_count_rows_as_often_as_they_say():
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60)
    weight = rng.integers(0, 4, (3, 60))
    functions = statistics(y, p)
    assert tuple(functions) == METRICS
    for k, counts in enumerate(weight):
        a, b = np.repeat(y, counts), np.repeat(p, counts, axis=0)
        expected = {
            "macro_auroc": roc_auc_score(a, b, multi_class="ovr"),
            "accuracy": accuracy_score(a, b.argmax(1)),
            "macro_f1": f1_score(a, b.argmax(1), average="macro"),
            "log_loss": log_loss(a, b),
        }
        found = {name: f(weight.astype(float))[k] for name, f in functions.items()}
        assert found == pytest.approx(expected)


def test_a_class_without_rows_does_not_count_and_a_resample_that_lacks_one_is_none():
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0, 0, 1.0]])
    functions = statistics(y, p)
    weight = np.array([[1.0, 1, 1, 1], [1, 1, 0, 0]])
    assert functions["macro_f1"](weight)[0] == pytest.approx((1 + 2 / 3) / 2)
    for name in ("macro_auroc", "macro_f1"):
        assert np.isnan(functions[name](weight)[1])
    assert functions["log_loss"](weight)[0] == pytest.approx(
        -np.log([0.9, 0.6, 0.8, 1e-6]).mean()  # a probability of 0 is not endless
    )
