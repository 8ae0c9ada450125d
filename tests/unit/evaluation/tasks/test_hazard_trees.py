import numpy as np
import pytest

from ehr_ray.evaluation.tasks.hazard_trees import fit_hazard_trees

EDGES = (1.0, 4.0)


def rows(number, seed, rate=(0.1, 0.5)):
    """Exponential times, the rate told by the first of two columns, censored at 6."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, number)
    time = rng.exponential(1 / np.array(rate)[group])
    x = np.column_stack([group, rng.normal(size=number)])
    return x, np.minimum(time, 6.0), time < 6.0


@pytest.mark.parametrize("tuned", [False, True])
def test_the_rates_of_two_groups_are_found_in_every_bin(tuned):
    tuning = rows(400, 2) if tuned else None
    hazard = fit_hazard_trees(rows(2000, 1), EDGES, tuning=tuning)(np.array([[0, 0.0], [1, 0.0]]))
    assert hazard.shape == (2, 3)
    np.testing.assert_allclose(hazard[0], 0.1, rtol=0.4)
    np.testing.assert_allclose(hazard[1], 0.5, rtol=0.4)


def test_a_hazard_may_change_between_bins():
    rng = np.random.default_rng(3)
    early = rng.random(2000) < 0.5
    time = np.where(early, rng.uniform(0, 1, 2000), 4 + rng.exponential(1, 2000))
    x = rng.normal(size=(2000, 1))
    hazard = fit_hazard_trees((x, time, np.ones(2000, bool)), EDGES)(x[:5])
    assert (hazard[:, 0] > 0.4).all()
    assert (hazard[:, 1] < 0.1).all()
    assert (hazard[:, 2] > 0.4).all()


def test_without_an_event_everybody_has_one_small_hazard():
    x, time, _ = rows(50, 4)
    hazard = fit_hazard_trees((x, time, np.zeros(50, bool)), EDGES)(x)
    np.testing.assert_allclose(hazard, 0.5 / time.sum())
