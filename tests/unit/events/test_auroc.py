import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from ehr_ray.events.auroc import auroc, sorted_auroc, tied_order


@pytest.mark.parametrize("decimals", [1, 8])
def test_it_is_that_of_scikit_learn_with_ties_and_weights(decimals):
    rng = np.random.default_rng(decimals)
    label, score = rng.random(200) < 0.3, np.round(rng.normal(size=200), decimals)
    assert auroc(label, score) == pytest.approx(roc_auc_score(label, score))
    weight = rng.integers(0, 4, (3, 200)).astype(float)
    order, ties = tied_order(score)
    found = sorted_auroc(weight[:, order], label[order].astype(float), ties)
    expected = [roc_auc_score(label, score, sample_weight=one) for one in weight]
    np.testing.assert_allclose(found, expected)


def test_equal_scores_tell_nothing_and_one_class_has_none():
    assert auroc(np.array([0, 1, 1]), np.ones(3)) == 0.5
    assert np.isnan(auroc(np.ones(3), np.arange(3)))
    assert np.isnan(auroc(np.zeros(0), np.zeros(0)))
