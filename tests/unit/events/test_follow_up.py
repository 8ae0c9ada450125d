import numpy as np

from ehr_ray.events.follow_up import next_occurrences
from ehr_ray.events.patients import Patient

HOUR = 3_600_000_000


def test_the_next_time_of_a_code_is_strictly_after_and_ends_with_the_record():
    hours = np.array([0, 2, 2, 3, 5])
    patient = Patient(1, 0, hours * HOUR, np.array([0, 0, 1, 0, 2], np.int32), np.full(5, np.nan))
    found = next_occurrences(patient, 2 * HOUR, np.array([2, 1, 0]))
    assert found is not None
    np.testing.assert_array_equal(found[0], [3, 3, 1])
    np.testing.assert_array_equal(found[1], [True, False, True])
    assert next_occurrences(patient, 5 * HOUR, np.array([0])) is None
