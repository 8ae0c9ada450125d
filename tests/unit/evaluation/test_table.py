import pytest

from ehr_ray.evaluation.table import Interval


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(0.8123, 0.7, 0.91234), "0.812 [0.700, 0.912]"),
        (Interval(-1.99, -2.5, 1.0), "-1.990 [-2.500, 1.000]"),
        (Interval(2.0, 1.0, 3.0), "2.0 [1.0, 3.0]"),
        (Interval(0.5, 0.1, 12.0), "0.5 [0.1, 12.0]"),
    ],
)
def test_numbers_larger_than_a_share_get_one_decimal(interval, text):
    assert str(interval) == text
