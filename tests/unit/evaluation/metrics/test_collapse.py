import numpy as np
import pytest
from scipy import stats

from ehr_ray.evaluation.metrics.collapse import embedding_diagnostics, latent_diagnostics


def posterior(seed=0, n=400, z=32, spread=1.0, logvar=-2.0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, spread, (n, z)), np.full((n, z), logvar)


def test_kl_equals_a_monte_carlo_estimate():
    rng = np.random.default_rng(1)
    mu, logvar = rng.normal(0.3, 1, (3, 4)), rng.normal(-1, 0.5, (3, 4))
    std = np.exp(0.5 * logvar)
    z = mu + std * rng.normal(size=(200_000, 3, 4))
    log_ratio = stats.norm.logpdf(z, mu, std) - stats.norm.logpdf(z)
    expected = log_ratio.mean(axis=0).sum(axis=1).mean()
    assert latent_diagnostics(mu, logvar).kl_per_row == pytest.approx(expected, rel=0.01)


def test_the_parts_of_the_kl_and_its_dimensions_both_sum_to_it():
    rng = np.random.default_rng(2)
    found = latent_diagnostics(rng.normal(0.5, 2, (50, 6)), rng.normal(-1, 1, (50, 6)))
    parts = found.kl_from_mean + found.kl_from_spread + found.kl_from_variance
    assert parts == pytest.approx(found.kl_per_row)
    assert found.kl_per_dimension.sum() == pytest.approx(found.kl_per_row)


def test_kl_per_patient_sums_the_rows_of_a_patient():
    mu, logvar = posterior(n=6, z=2)
    groups = np.array([7, 7, 7, 3, 3, 9])
    found = latent_diagnostics(mu, logvar, groups)
    assert found.kl_per_patient == pytest.approx(found.kl_per_row * 6 / 3)
    assert np.isnan(latent_diagnostics(mu, logvar).kl_per_patient)


def test_active_units_are_those_whose_mean_varies_more_than_a_hundredth():
    mu, logvar = posterior(z=10)
    mu[:, 4:] *= 0.05  # variance 0.0025
    found = latent_diagnostics(mu, logvar)
    assert found.active.tolist() == [True] * 4 + [False] * 6
    assert found.metrics()["active_units"] == 4
    assert found.metrics()["active_share"] == 0.4


def test_a_spread_out_posterior_is_healthy():
    found = latent_diagnostics(*posterior())
    assert found.verdict == "healthy"
    assert found.metrics()["collapsed"] == 0


def test_a_sharp_posterior_that_fills_the_prior_is_healthy():
    assert latent_diagnostics(*posterior(logvar=-9.0)).verdict == "healthy"


def test_a_posterior_equal_to_the_prior_is_collapsed():
    found = latent_diagnostics(*posterior(spread=1e-3, logvar=0.0))
    assert found.verdict == "collapsed"
    assert "prior" in found.reason


def test_a_small_constant_variance_is_collapsed_although_its_kl_is_large():
    found = latent_diagnostics(*posterior(spread=0.05, logvar=-2.5))
    assert found.kl_per_row > 20
    assert found.verdict == "collapsed"
    assert "0 of 32 units active" in found.reason


def test_a_kl_paid_mostly_for_a_constant_variance_is_partly_collapsed():
    found = latent_diagnostics(*posterior(spread=0.3, logvar=-2.5))
    assert found.verdict == "partly collapsed"
    assert "of the KL" in found.reason


def test_means_on_one_line_are_collapsed():
    line = np.random.default_rng(0).normal(size=(200, 1)) * np.ones((1, 16))
    found = latent_diagnostics(line, np.full((200, 16), -1.0))
    assert found.verdict == "collapsed"
    assert "line" in found.reason


def test_means_that_point_one_way_are_partly_collapsed():
    mu, logvar = posterior()
    assert latent_diagnostics(mu + 10, logvar).verdict == "partly collapsed"


def test_few_rows_are_not_blamed_for_their_rank():
    assert latent_diagnostics(*posterior(n=5, z=64)).verdict == "healthy"


def test_an_offset_hides_in_raw_rankme_and_shows_after_centring():
    x = np.random.default_rng(0).normal(size=(500, 16)) + 100
    found = embedding_diagnostics(x)
    assert found.rankme < 2
    assert found.rankme_centered > 14
    assert found.cosine > 0.99
    assert found.std == pytest.approx(1, rel=0.05)


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="must be equal"):
        latent_diagnostics(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="not empty"):
        embedding_diagnostics(np.zeros((0, 4)))


def test_a_few_units_that_are_used_count_however_wide_the_latent_was_made():
    """Of 128 units: 4 are a latent that is used in part, 3 are too few."""
    for used, verdict in ((4, "partly collapsed"), (3, "collapsed")):
        mu, logvar = posterior(z=128)
        mu[:, used:] *= 0.05  # variance 0.0025
        assert latent_diagnostics(mu, logvar).verdict == verdict
