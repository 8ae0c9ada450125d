import numpy as np

from ehr_ray.events.normalize import z_score

MEAN, STD = np.array([10.0, 0.0]), np.array([2.0, 1.0])


def score(value, code, mean=MEAN, std=STD):
    return z_score(np.array(value, np.float32), np.array(code, np.int32), mean, std).tolist()


def test_values_are_scaled_by_the_statistics_of_their_code():
    assert score([14.0, 4.0, 3.0], [0, 0, 1]) == [2.0, -3.0, 3.0]


def test_a_missing_value_becomes_one():
    assert score([np.nan, np.nan], [0, -1]) == [1.0, 1.0]


def test_an_unknown_code_has_mean_zero_and_std_one():
    assert score([5.0], [-1]) == [5.0]


def test_an_empty_vocabulary_leaves_values_alone():
    assert score([5.0, np.nan], [-1, -1], np.zeros(0), np.zeros(0)) == [5.0, 1.0]


def test_the_result_is_float32():
    assert z_score(np.float32([1]), np.int32([0]), MEAN, STD).dtype == np.float32
