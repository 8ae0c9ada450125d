import numpy as np
import pytest

from ehr_ray.events.patients import Patient

MINUTE = 60_000_000
STATIC = np.iinfo(np.int64).min


@pytest.fixture
def batch_of_events():
    """A family's batch of (minute, code) by patient; no minute is static.

    Each event has the one value, unless a third part of it says another.
    """

    def make(family, vocabulary, config, patients, value):
        rows = []
        for subject, events in enumerate(patients, 1):
            times = [STATIC if m is None else m * MINUTE for m, *_ in events]
            codes = np.array([event[1] for event in events], np.int32)
            values = np.array([event[2] if len(event) > 2 else value for event in events])
            patient = Patient(
                subject, 0, np.array(times, np.int64), codes, values.astype(np.float32)
            )
            rows.append(family.transform(patient, config, vocabulary))
        return family.collate(rows, config)

    return make
