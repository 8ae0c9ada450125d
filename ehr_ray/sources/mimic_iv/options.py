"""What can be asked of the MIMIC-IV source."""

from dataclasses import dataclass, field
from typing import Literal

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.admissions import STAY
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
            "help": "tasks besides, by comma, of the admission that --label-start is in: `icd` "
            "for groups of diagnoses that are shipped (sepsis, heart_failure, ...), or a CSV file "
            "of task,version,prefix of ICD codes; `length_of_stay` for days as a number, and as "
            "length_of_stay_class"
        },
    )
    lab_time: Literal["chart", "store"] = field(
        default="chart",
        metadata={
            "help": "when a laboratory test counts: charttime, its specimen, or storetime, its "
            "result (charttime where that is blank or later)"
        },
    )

    @property
    def groups(self) -> str | None:
        """The table of diagnoses that are tasks; None without one."""
        return next((name for name in self._tasks if name != STAY), None)

    @property
    def stay(self) -> bool:
        """Whether the length of stay is a task."""
        return STAY in self._tasks

    @property
    def _tasks(self) -> list[str]:
        return [name.strip() for name in (self.tasks or "").split(",") if name.strip()]

    def __post_init__(self) -> None:
        """Refuse what keeps nobody, and labels that would be predicted after they are known."""
        if not 0 < self.sample_frac <= 1:
            raise InputError(f"--sample-frac {self.sample_frac}: not above 0 and at most 1")
        if self.max_admissions is not None and self.max_admissions < 1:
            raise InputError(f"--max-admissions {self.max_admissions}: at least 1 is needed")
        if self.tasks is not None and not self._tasks:
            raise InputError("--tasks: names nothing; give `icd`, a CSV file or `length_of_stay`")
        if len([name for name in self._tasks if name != STAY]) > 1:
            raise InputError(f"--tasks {self.tasks}: one table of diagnoses at most")
        if self.min_seq_length < 0:
            raise InputError(f"--min-seq-length {self.min_seq_length}: must be 0 or more")
        if not 0 <= self.label_hours < LONG_STAY_HOURS:
            raise InputError(
                f"--label-hours {self.label_hours}: not between 0 and {LONG_STAY_HOURS:g}, when "
                "a long stay is known to be one"
            )
