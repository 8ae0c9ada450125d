import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.omop.options import OmopOptions


@pytest.mark.parametrize("hours", [-1, 168])
def test_labels_that_would_be_known_already_are_refused(hours):
    with pytest.raises(InputError, match=f"--label-hours {hours}: not between 0 and 168"):
        OmopOptions(label_hours=hours)
