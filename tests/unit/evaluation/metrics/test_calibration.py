import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ehr_ray.evaluation.metrics.calibration import calibration_statistics, logit, refitted


@pytest.fixture
def risks():
    """Outcomes of risks that are too extreme by 2 and too low by 0.5 on the logit scale."""
    rng = np.random.default_rng(0)
    said = rng.normal(0, 2, 20_000)
    truth = 1 / (1 + np.exp(-(0.5 + 0.5 * said)))
    return (rng.random(20_000) < truth).astype(float), 1 / (1 + np.exp(-said))


def test_slope_and_intercept_are_those_of_logistic_regression(risks):
    y, p = risks
    model = LogisticRegression(C=1e9).fit(logit(p)[:, None], y)
    found = calibration_statistics(y, p)
    whole = np.ones((1, len(y)))
    assert found["calibration_slope"](whole)[0] == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert found["calibration_slope"](whole)[0] == pytest.approx(0.5, abs=0.03)
    again = refitted(y, p)(p)
    assert again == pytest.approx(model.predict_proba(logit(p)[:, None])[:, 1], abs=1e-4)
    right = calibration_statistics(y, again)
    assert right["calibration_slope"](whole)[0] == pytest.approx(1, abs=1e-3)
    assert right["calibration_in_the_large"](whole)[0] == pytest.approx(0, abs=1e-3)
    assert found["calibration_in_the_large"](whole)[0] > 0.3


def test_weights_are_rows_that_count_more_than_once(risks):
    y, p = (values[:300] for values in risks)
    times = np.random.default_rng(1).integers(0, 3, 300)
    for name, function in calibration_statistics(y, p).items():
        repeated = calibration_statistics(np.repeat(y, times), np.repeat(p, times))[name]
        once = np.ones((1, times.sum()))
        assert function(times[None].astype(float)) == pytest.approx(repeated(once))


def test_what_cannot_be_fitted_is_not_a_number_or_an_error():
    y, p = np.array([0.0, 0, 1, 1]), np.array([0.1, 0.2, 0.8, 0.9])
    weights = np.array([[1.0, 1, 0, 0], [1, 1, 1, 1]])
    assert np.isnan(calibration_statistics(y, p)["calibration_slope"](weights)).all()
    assert np.isnan(calibration_statistics(y, p)["calibration_in_the_large"](weights))[0]
    for label in (y, np.zeros(4)):
        with pytest.raises(ValueError, match="cannot be fitted"):
            refitted(label, p)


@pytest.mark.parametrize("slope", [10.1, 15, 30, 300])
def test_a_slope_of_flat_risks_is_one_however_steep(slope):
    rng = np.random.default_rng(2)
    truth = rng.normal(-0.5, 1.5, 130)
    y = (rng.random(130) < 1 / (1 + np.exp(-truth))).astype(float)
    p = 1 / (1 + np.exp(-truth / slope))
    model = LogisticRegression(C=1e12, tol=1e-10).fit(truth[:, None], y)
    whole = np.ones((1, 130))
    found = calibration_statistics(y, p)["calibration_slope"]
    assert found(whole)[0] == pytest.approx(slope * model.coef_[0, 0], rel=1e-3)
    assert refitted(y, p)(p) == pytest.approx(model.predict_proba(truth[:, None])[:, 1], abs=1e-3)
    drawn = rng.multinomial(130, np.full(130, 1 / 130), 200).astype(float)
    assert np.isfinite(found(drawn)).all()


def test_classes_that_hardly_overlap_have_a_slope_and_divided_ones_none():
    y = np.repeat([0.0, 1], 50)
    x = np.linspace(-3, 3, 100)
    whole = np.ones((1, 100))

    def slope(log_odds, weights=whole):
        return calibration_statistics(y, 1 / (1 + np.exp(-log_odds)))["calibration_slope"](weights)[
            0
        ]

    assert np.isnan(slope(x))
    assert np.isnan(slope(-x))
    tied, crossed = x.copy(), x.copy()
    tied[50] = tied[49]
    crossed[[49, 50]] = crossed[[50, 49]]
    assert np.isnan(slope(tied))
    assert 10 < slope(crossed) < np.inf
    assert slope(-crossed) == pytest.approx(-slope(crossed))
    without = whole.copy()
    without[0, 49] = 0
    assert np.isnan(slope(crossed, without))
    assert np.isnan(slope(np.full(100, 0.3)))
    assert np.isnan(slope(0.3 + 1e-12 * crossed))


def test_risks_at_the_ends_of_the_scale_are_fitted_by_their_highest_likelihood():
    rng = np.random.default_rng(3)
    for _ in range(50):
        x = rng.choice([-13.0, -4, 0, 5, 13], 40) + rng.normal(0, 0.1, 40)
        y = (rng.random(40) < 1 / (1 + np.exp(-x))).astype(float)
        y[:2], x[:2] = (0, 1), (12, -12)
        found = refitted(y, 1 / (1 + np.exp(-x)))(1 / (1 + np.exp(-x)))
        # Where the gradient is zero, the risks' sum and their sum by log-odds are right.
        assert found.sum() == pytest.approx(y.sum(), abs=1e-3)
        assert (found * x).sum() == pytest.approx((y * x).sum(), abs=1e-2)
