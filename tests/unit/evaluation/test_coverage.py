import numpy as np
import pytest

from ehr_ray.evaluation.coverage import coverage_of
from ehr_ray.events.vocabulary import Vocabulary


@pytest.fixture
def vocabulary():
    return Vocabulary(("HR", "SpO2"), np.ones(2, np.int64), np.zeros(2), np.ones(2))


def test_admissions_count_as_neither_known_nor_unknown(vocabulary):
    coverage = coverage_of({"HR": 6, "ADMISSION": 5, "RR": 3, "GCS": 1}, vocabulary)
    assert coverage.events == 10
    assert list(coverage.unknown.items()) == [("RR", 3), ("GCS", 1)]
    assert coverage.line() == (
        "the model knows 60.0% of 10 events; 2 codes are new to it: RR (3), GCS (1)"
    )


def test_of_no_events_all_are_known(vocabulary):
    assert coverage_of({"ADMISSION": 2}, vocabulary).known == 1
