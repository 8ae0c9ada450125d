"""What can be asked of the MIMIC-IV source."""

from dataclasses import dataclass, field
from typing import Literal

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.labels import LONG_STAY_HOURS


@dataclass(frozen=True)
class MimicIvOptions:
    """Which subjects are kept, and when their outcomes are predicted."""

    sample_frac: float = field(
        default=1.0, metadata={"help": "share of subjects kept, by a hash of the subject id"}
    )
    max_admissions: int | None = field(
        default=None,
        metadata={"help": "most admissions in all; whole subjects, in order of the same hash"},
    )
    min_seq_length: int = field(
        default=1, metadata={"help": "shortest history of a subject kept, in --seq-unit"}
    )
    seq_unit: Literal["admissions", "hours"] = field(
        default="admissions",
        metadata={"help": "what --min-seq-length counts: admissions, or hours of the longest one"},
    )
    label_hours: float = field(
        default=48.0,
        metadata={"help": "hours after --label-start at which death and stay are predicted"},
    )
    label_start: Literal["hospital", "icu"] = field(
        default="hospital", metadata={"help": "the subject's first admission to this counts"}
    )

    tasks: str | None = field(
        default=None,
        metadata={
            "help": "diagnoses as tasks besides, of the admission that --label-start is in: `icd` "
            "for groups that are shipped (sepsis, heart_failure, ...), or a CSV file of "
            "task,version,prefix of ICD codes"
        },
    )
    lab_time: Literal["chart", "store"] = field(
        default="chart",
        metadata={
            "help": "when a laboratory test counts: charttime, its specimen, or storetime, its "
            "result (charttime where that is blank or later)"
        },
    )

    def __post_init__(self) -> None:
        """Refuse what keeps nobody, and labels that would be predicted after they are known."""
        if not 0 < self.sample_frac <= 1:
            raise InputError(f"--sample-frac {self.sample_frac}: not above 0 and at most 1")
        if self.max_admissions is not None and self.max_admissions < 1:
            raise InputError(f"--max-admissions {self.max_admissions}: at least 1 is needed")
        if self.min_seq_length < 0:
            raise InputError(f"--min-seq-length {self.min_seq_length}: must be 0 or more")
        if not 0 <= self.label_hours < LONG_STAY_HOURS:
            raise InputError(
                f"--label-hours {self.label_hours}: not between 0 and {LONG_STAY_HOURS:g}, when "
                "a long stay is known to be one"
            )
