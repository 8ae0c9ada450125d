import numpy as np
import pytest

from ehr_ray.events.patients import Patient

MINUTE = 60_000_000
STATIC = np.iinfo(np.int64).min


@pytest.fixture
def batch_of_events():
    """A family's batch of (minute, code) by patient, each with one value; no minute is static."""

    def make(family, vocabulary, config, patients, value):
        rows = []
        for subject, events in enumerate(patients, 1):
            times = [STATIC if m is None else m * MINUTE for m, _ in events]
            codes = np.array([code for _, code in events], np.int32)
            values = np.full(len(codes), value, np.float32)
            patient = Patient(subject, 0, np.array(times, np.int64), codes, values)
            rows.append(family.transform(patient, config, vocabulary))
        return family.collate(rows, config)

    return make
