"""Options of a time-to-event head, the same in every family that has one."""

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import Field

Hours = Annotated[float, Field(gt=0, allow_inf_nan=False)]
BINS: Final = (1.0, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 168.0, 720.0)
"""Hours from a moment on between which a hazard is constant, unless others are given."""
IDLE: Final = ("time_to_event_codes", "time_to_event_bins")
"""Options that change nothing where `time_to_event_weight` is 0."""


def check_time_to_event(codes: int | Sequence[str], bins: Sequence[float]) -> None:
    """Raise ValueError for bins that do not ascend, and for codes given twice or not at all."""
    check_ascending("time_to_event_bins", bins)
    check_codes("time_to_event_codes", codes)


def check_ascending(option: str, hours: Sequence[float]) -> None:
    """Raise ValueError for hours of an option that do not ascend, or of which there are none."""
    if not hours or list(hours) != sorted(set(hours)):
        raise ValueError(f"{option} {list(hours)} must ascend, and have one at least")


def check_codes(option: str, codes: int | Sequence[str]) -> None:
    """Raise ValueError for names of codes that an option gives twice, and for none at all."""
    if not isinstance(codes, int) and (not codes or len(set(codes)) < len(codes)):
        raise ValueError(f"{option} must name at least one code, and each once")
