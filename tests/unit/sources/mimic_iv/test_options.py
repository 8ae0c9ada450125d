import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.mimic_iv.options import MimicIvOptions
from ehr_ray.sources.source import get_source, make_options


def test_the_flags_of_the_original_command_are_understood():
    given = {"sample-frac": "0.05", "max-admissions": "1000", "min-seq-length": "10"}
    options = make_options(get_source("mimic-iv"), given)
    assert options == MimicIvOptions(sample_frac=0.05, max_admissions=1000, min_seq_length=10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample_frac": 0.0}, "--sample-frac 0.0: not above 0"),
        ({"sample_frac": 1.5}, "--sample-frac 1.5: not above 0 and at most 1"),
        ({"sample_frac": float("nan")}, "--sample-frac nan"),
        ({"max_admissions": 0}, "--max-admissions 0: at least 1"),
        ({"min_seq_length": -1}, "--min-seq-length -1: must be 0 or more"),
        ({"label_hours": -1.0}, "--label-hours -1.0: not between 0 and 168"),
        ({"label_hours": 168.0}, "--label-hours 168.0: .* a long stay is known to be one"),
    ],
)
def test_what_cannot_be_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        MimicIvOptions(**given)
