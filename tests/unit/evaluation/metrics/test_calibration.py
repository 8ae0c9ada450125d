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
