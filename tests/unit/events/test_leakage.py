import numpy as np
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.leakage import column_discrimination, require_no_leak

RNG = np.random.default_rng(0)
LABEL = np.r_[np.ones(40), np.zeros(60), -np.ones(20)].astype(int)


def test_a_column_that_is_the_label_stops_with_its_name():
    columns = np.stack([RNG.normal(size=120), (LABEL == 1).astype(float)], 1)
    with pytest.raises(InputError, match=r"after_op.*recurrence_2y.*AUROC 1\.000"):
        require_no_leak(columns, ["age", "after_op"], LABEL, "recurrence_2y")
    require_no_leak(columns[:, :1], ["age"], LABEL, "recurrence_2y")


def test_the_opposite_of_the_label_and_being_missing_leak_as_well():
    missing = np.where(LABEL == 1, np.nan, 3.0)
    found = column_discrimination(np.stack([-(LABEL == 1).astype(float), missing], 1), LABEL)
    np.testing.assert_allclose(found, [1, 1])


def test_a_few_patients_prove_no_leak():
    few = np.where(np.arange(120) < 10, LABEL, np.where(LABEL == 1, -1, LABEL))
    assert np.isnan(column_discrimination((few == 1).astype(float)[:, None], few)).all()
