import numpy as np
import pytest
from scipy.optimize import approx_fprime

from ehr_ray.evaluation.tasks.cox import fit_cox, partial_likelihood


def rows(number, seed, tied=False):
    """Times whose hazard doubles with each unit of the first of three columns, censored at 6."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, 3))
    time = rng.exponential(5 / 2 ** x[:, 0])
    time = np.ceil(time) if tied else time
    return x, np.minimum(time, 6.0), time < 6.0


def test_the_weight_of_a_feature_is_found_and_none_of_noise():
    risk = fit_cox(rows(4000, 1), tuning=rows(1000, 2))
    at = np.array([[1.0, 0, 0], [0.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]])
    one, zero, *noise = risk(at)
    assert one - zero == pytest.approx(np.log(2), abs=0.06)
    np.testing.assert_allclose(noise - zero, 0.0, atol=0.06)


def test_ties_are_at_risk_together_and_the_gradient_is_that_of_the_likelihood():
    rng = np.random.default_rng(3)
    _, time, event = rows(30, 3, tied=True)
    risk = rng.normal(size=30)
    loss, gradient = partial_likelihood(risk, time, event)
    by_hand = [np.log(np.exp(risk[time >= time[i]]).sum()) - risk[i] for i in np.flatnonzero(event)]
    assert loss == pytest.approx(np.mean(by_hand))
    numeric = approx_fprime(risk, lambda r: partial_likelihood(r, time, event)[0], 1e-7)
    np.testing.assert_allclose(gradient, numeric, atol=1e-5)


def test_the_weights_that_statsmodels_finds_are_the_best_here_too():
    phreg = pytest.importorskip("statsmodels.duration.api").PHReg
    x, time, event = rows(500, 4, tied=True)
    scale = x.std(0)
    theirs = phreg(time, (x - x.mean(0)) / scale, event, ties="breslow").fit().params
    z = (x - x.mean(0)) / scale
    _, gradient = partial_likelihood(z @ theirs, time, event)
    assert np.abs(z.T @ gradient).max() < 1e-5  # nothing is better


def test_the_penalty_is_chosen_on_tuning_and_strong_where_there_is_nothing_to_learn():
    rng = np.random.default_rng(5)
    noise, tuning = (
        (rng.normal(size=(80, 60)), rng.exponential(size=80), np.ones(80, bool)) for _ in range(2)
    )
    x = noise[0]
    assert np.abs(fit_cox(noise, tuning=tuning)(x)).max() < 0.3 * np.abs(fit_cox(noise)(x)).max()


def test_missing_values_are_filled_and_without_an_event_all_are_alike():
    x, time, event = rows(200, 6)
    x[::3, 1] = np.nan
    assert np.isfinite(fit_cox((x, time, event))(x)).all()
    assert not fit_cox((x, time, np.zeros(200, bool)))(x).any()
