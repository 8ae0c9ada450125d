import pytest

from ehr_ray.config.time_to_event import BINS, check_time_to_event


@pytest.mark.parametrize(
    ("codes", "bins", "message"),
    [
        (5, (4.0, 1.0), "must ascend"),
        (5, (1.0, 1.0), "must ascend"),
        (5, (), "one at least"),
        ((), BINS, "at least one code"),
        (("HR", "HR"), BINS, "each once"),
    ],
)
def test_a_head_without_codes_or_bins_that_ascend_is_refused(codes, bins, message):
    with pytest.raises(ValueError, match=message):
        check_time_to_event(codes, bins)


def test_the_usual_bins_and_codes_by_number_or_name_are_taken():
    check_time_to_event(64, BINS)
    check_time_to_event(("MEDS_DEATH",), (24.0,))
