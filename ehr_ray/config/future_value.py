"""Options of a head of future values, the same in every family that has one."""

from collections.abc import Sequence
from typing import Final

from ehr_ray.config.time_to_event import check_ascending, check_codes

HOURS: Final = (6.0, 12.0, 24.0)
"""Hours after a moment at which a window of values ends, unless others are given."""
IDLE: Final = ("future_value_codes", "future_value_hours")
"""Options that change nothing where `future_value_weight` is 0."""


def check_future_value(codes: int | Sequence[str], hours: Sequence[float]) -> None:
    """Raise ValueError for hours that do not ascend, and for codes given twice or not at all."""
    check_ascending("future_value_hours", hours)
    check_codes("future_value_codes", codes)
