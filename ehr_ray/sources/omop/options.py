"""What can be asked of the OMOP source."""

from dataclasses import dataclass, field

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.labels import LONG_STAY_HOURS


@dataclass(frozen=True)
class OmopOptions:
    """When outcomes are predicted."""

    label_hours: float = field(
        default=48.0,
        metadata={
            "help": "hours after the first inpatient visit began at which death and stay are "
            "predicted"
        },
    )

    def __post_init__(self) -> None:
        """Refuse labels that would be predicted after they are known."""
        if not 0 <= self.label_hours < LONG_STAY_HOURS:
            raise InputError(
                f"--label-hours {self.label_hours}: not between 0 and {LONG_STAY_HOURS:g}, when "
                "a long stay is known to be one"
            )
