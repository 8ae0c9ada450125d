import numpy as np
import pytest

from ehr_ray.errors import ConfigError
from ehr_ray.events.follow_up import measured_codes, next_occurrences
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary

HOUR = 3_600_000_000


def test_the_next_time_of_a_code_is_strictly_after_and_ends_with_the_record():
    hours = np.array([0, 2, 2, 3, 5])
    patient = Patient(1, 0, hours * HOUR, np.array([0, 0, 1, 0, 2], np.int32), np.full(5, np.nan))
    found = next_occurrences(patient, 2 * HOUR, np.array([2, 1, 0]))
    assert found is not None
    np.testing.assert_array_equal(found[0], [3, 3, 1])
    np.testing.assert_array_equal(found[1], [True, False, True])
    assert next_occurrences(patient, 5 * HOUR, np.array([0])) is None


def test_values_are_asked_of_codes_that_have_some():
    valued = [True, False, True, True]
    quantiles = np.where(np.array(valued)[:, None], 0.0, np.nan) + np.arange(7)
    vocabulary = Vocabulary(
        ("A", "B", "C", "D"), np.ones(4, np.int64), np.zeros(4), np.ones(4), quantiles,
        subjects=np.array([1, 9, 5, 7]),
    )  # fmt: skip
    assert measured_codes(2, vocabulary).tolist() == [3, 2]
    assert measured_codes(64, vocabulary).tolist() == [3, 2, 0]
    assert measured_codes(("A", "D"), vocabulary).tolist() == [0, 3]
    assert measured_codes(0, vocabulary).tolist() == []
    for asked, message in [(("A", "X"), "'X' is no code"), (("A", "B"), "'B' has no values")]:
        with pytest.raises(ConfigError, match=rf"model\.future_value_codes: {message}"):
            measured_codes(asked, vocabulary)
    bare = Vocabulary(("B",), np.ones(1, np.int64), np.zeros(1), np.ones(1))
    with pytest.raises(ConfigError, match=r"no code of the cohort's train split has values"):
        measured_codes(64, bare)
