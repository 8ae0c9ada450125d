import numpy as np
import pytest

from ehr_ray.families.vitals_vae.evaluation.fpca import COMPONENTS, fit


def curves(number=60, hours=40, seed=0):
    """Patients with a level and a slope in the first vital sign, noise in the second."""
    rng = np.random.default_rng(seed)
    time = np.linspace(-1, 1, hours)
    line = rng.normal(size=(number, 1)) + rng.normal(size=(number, 1)) * time
    return np.stack([line, rng.normal(size=(number, hours))], 2).astype(np.float32)


@pytest.fixture(scope="module")
def fitted():
    return fit(curves())


def test_two_components_tell_a_level_and_a_slope(fitted):
    assert fitted.explained.shape == (2, COMPONENTS)
    assert fitted.explained[0, :2].sum() == pytest.approx(1.0, abs=1e-3)
    assert fitted.explained[1, :2].sum() < 0.3


def test_scores_times_components_plus_the_mean_are_the_projection(fitted):
    new = curves(9, seed=1)
    scores = fitted.scores(new)
    assert scores.shape == (9, 2 * COMPONENTS)
    each = scores.reshape(9, 2, -1)
    back = fitted.mean + np.einsum("nvk,vkh->nvh", each, fitted.components)
    np.testing.assert_allclose(back.transpose(0, 2, 1), fitted.project(new), atol=1e-4)
    np.testing.assert_allclose(back[:, 0], new[:, :, 0], atol=0.02)


def test_few_patients_give_few_components():
    assert fit(curves(4)).explained.shape == (2, 3)
