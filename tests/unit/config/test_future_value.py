import pytest

from ehr_ray.config.future_value import HOURS, check_future_value


@pytest.mark.parametrize(
    ("codes", "hours", "message"),
    [
        (5, (4.0, 1.0), r"future_value_hours \[4.0, 1.0\] must ascend"),
        (5, (), "one at least"),
        ((), HOURS, "future_value_codes must name at least one code"),
        (("HR", "HR"), HOURS, "each once"),
    ],
)
def test_a_head_without_codes_or_windows_that_ascend_is_refused(codes, hours, message):
    with pytest.raises(ValueError, match=message):
        check_future_value(codes, hours)


def test_the_usual_windows_and_codes_by_number_or_name_are_taken():
    check_future_value(64, HOURS)
    check_future_value(("HR",), (24.0,))
