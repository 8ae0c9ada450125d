import numpy as np
import pytest

from ehr_ray.evaluation.metrics.spread import mean_pairwise_cosine, rankme


def test_cosine_equals_the_mean_over_all_pairs():
    x = np.random.default_rng(0).normal(0.5, 1, (40, 7))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    pairs = (unit @ unit.T)[np.triu_indices(40, 1)]
    assert mean_pairwise_cosine(x) == pytest.approx(pairs.mean())


def test_a_row_of_zeros_has_no_direction():
    assert mean_pairwise_cosine(np.array([[1.0, 0.0], [0.0, 0.0]])) == 0
    assert np.isnan(mean_pairwise_cosine(np.ones((1, 3))))


@pytest.mark.parametrize("shape", [(50, 9), (9, 50)])
def test_rankme_equals_its_definition_by_singular_values(shape):
    x = np.random.default_rng(0).normal(size=shape)
    s = np.linalg.svd(x, compute_uv=False)
    p = s / s.sum()
    assert rankme(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_rankme_counts_equal_directions_and_ignores_rounding():
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 5)))[0]
    embedding = basis @ np.linalg.qr(np.random.default_rng(1).normal(size=(20, 5)))[0].T
    assert rankme(embedding) == pytest.approx(5, rel=1e-4)
    assert rankme(np.zeros((4, 3))) == 0
