import numpy as np
import pytest

from ehr_ray.events.normalize import z_score
from ehr_ray.events.vocabulary import Vocabulary

NONE = [np.nan] * 7


@pytest.fixture
def vocabulary():
    """A lab that is normal with a standard deviation of 2, and a code that never has a value."""
    quantiles = [10 + 2 * np.array([-2.326, -1.645, -0.6745, 0, 0.6745, 1.645, 2.326]), NONE]
    mean, std = np.array([10.0, 0.0]), np.array([2.0, 1.0])
    return Vocabulary(("LAB", "PROCEDURE"), np.ones(2, int), mean, std, np.array(quantiles))


def score(vocabulary, value, code):
    return z_score(np.array(value, np.float32), np.array(code, np.int32), vocabulary).tolist()


def test_values_are_scaled_by_the_statistics_of_their_code(vocabulary):
    assert score(vocabulary, [14.0, 4.0, 3.0], [0, 0, 1]) == pytest.approx([2, -3, 3], abs=1e-3)


def test_a_missing_value_of_a_code_with_values_is_its_location(vocabulary):
    """It was 1 before: a standard deviation above the mean, from no number at all."""
    assert score(vocabulary, [np.nan, 10.0], [0, 0]) == [0.0, 0.0]


def test_a_code_that_never_has_a_value_is_one(vocabulary):
    assert score(vocabulary, [np.nan, np.nan], [1, -1]) == [1.0, 1.0]


def test_an_unknown_code_has_location_zero_and_scale_one(vocabulary):
    assert score(vocabulary, [5.0], [-1]) == [5.0]


def test_an_empty_vocabulary_leaves_values_alone():
    empty = Vocabulary((), *(np.zeros(0),) * 3)
    assert score(empty, [5.0, np.nan], [-1, -1]) == [5.0, 1.0]


def test_the_result_is_float32(vocabulary):
    assert z_score(np.float32([1]), np.int32([0]), vocabulary).dtype == np.float32
