import numpy as np
import pytest

from ehr_ray.events.scaling import location_and_scale
from ehr_ray.events.vocabulary import QUANTILES

NONE = [np.nan] * 7


def scales(scaling, values):
    values = np.array(values, float)
    quantiles = np.quantile(values, QUANTILES)[None]
    found = location_and_scale(
        scaling, values.mean(keepdims=True), values.std(keepdims=True), quantiles
    )
    return [float(part[0]) for part in found]


def test_a_few_typing_errors_do_not_erase_a_variable():
    """A pH of 74 for 7.4, 1 in 200: the standard deviation is 50 times what it should be."""
    ph = np.random.default_rng(0).normal(7.4, 0.07, 4000)
    ph[::200] *= 10
    assert scales("standard", ph)[1] > 3
    assert scales("robust", ph) == [pytest.approx(7.4, abs=0.01), pytest.approx(0.07, rel=0.1)]


def test_a_normal_variable_has_about_the_same_scale_either_way():
    values = np.random.default_rng(1).normal(80, 12, 20_000)
    assert scales("robust", values) == pytest.approx(scales("standard", values), rel=0.02)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.21] * 90 + [1.0] * 10, 0.79 / 3.290),  # most are one: 5 to 95 %
        ([0.21] * 970 + [1.0] * 30, 0.79 / 4.653),  # 1 to 99 %
        ([0.0] * 999 + [1.0], np.sqrt(0.001 * 0.999)),  # the standard deviation
        ([7.0] * 5, 1.0),
    ],
)
def test_where_most_values_are_one_wider_ranges_stand_in(values, scale):
    assert scales("robust", values)[1] == pytest.approx(scale)


def test_without_quantiles_robust_is_mean_and_standard_deviation():
    mean, std = np.array([5.0]), np.array([3.0])
    assert location_and_scale("robust", mean, std, np.array([NONE])) == (mean, std)
