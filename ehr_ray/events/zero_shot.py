"""Whether a code occurs within a horizon: what is asked of futures, and what a record answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ehr_ray.errors import InputError
from ehr_ray.events.patients import Patient
from ehr_ray.events.schema import is_origin
from ehr_ray.events.vocabulary import Vocabulary

DEATH_CODES: Final = ("MEDS_DEATH", "DEATH")
"""Codes, alone or before a slash, after which nothing occurs."""
_MICROSECONDS_PER_HOUR: Final = 3_600_000_000


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """A code, a horizon, and how many futures are drawn for an answer."""

    code: str
    """The code itself, or what others begin with, before a slash: `LAB//X` is `LAB//X//mg` too."""
    hours: float
    """Within so many hours after the prediction time."""
    from_hour: float | None = None
    """Hours from the origin to the prediction time; None: the prediction times of the task."""
    draws: int = 100
    """Futures of each prediction."""
    events: int = 1000
    """Events after which a future is cut."""

    def __post_init__(self) -> None:
        """Refuse numbers that ask nothing."""
        if not (self.hours > 0 and math.isfinite(self.hours)):
            raise InputError(f"--horizon {self.hours:g}: give hours above 0")
        if self.from_hour is not None and not 0 <= self.from_hour < math.inf:
            raise InputError(f"--from-hour {self.from_hour:g}: give hours, 0 or more")
        for option, number in (("--draws", self.draws), ("--max-events", self.events)):
            if number < 1:
                raise InputError(f"{option} {number}: give a number of at least 1")

    def codes(self, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
        """Return which codes are asked for, bool [V]; InputError where none is."""
        found = _named(vocabulary, (self.code,))
        if not found.any():
            raise InputError(
                f"--zero-shot {self.code}: no code that the run knows is it, or begins with "
                f"{self.code}/; metadata/codes.parquet of its cohort lists them"
            )
        return found

    def ends(self, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
        """Return the codes that end a future, bool [V]: those asked for, and death."""
        return self.codes(vocabulary) | _named(vocabulary, DEATH_CODES)

    def times(self, patient: Patient, given: Mapping[int, Sequence[int]] | None) -> list[int]:
        """Return a patient's prediction times: those given by subject, or `from_hour`."""
        if self.from_hour is None:
            return sorted(set((given or {}).get(patient.subject_id, ())))
        return [patient.origin + round(self.from_hour * _MICROSECONDS_PER_HOUR)]

    def answer(
        self, patient: Patient, time: int, codes: npt.NDArray[np.bool_], ends: npt.NDArray[np.bool_]
    ) -> bool | None:
        """Return whether one of `codes` occurs after `time` and within the horizon; None: unknown.

        It is known not to occur where the record goes on to the horizon, or one of `ends` is before
        it; what comes at `time` itself is known then, and no answer.
        """
        end = time + round(self.hours * _MICROSECONDS_PER_HOUR)
        code = patient.code[(patient.time > time) & (patient.time <= end)]
        if codes[code].any():
            return True
        last = max(patient.time.max(initial=time), patient.admitted.max(initial=time))
        return False if last >= end or ends[code].any() else None


def _named(vocabulary: Vocabulary, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    return np.array([is_origin(code, names) for code in vocabulary.codes], bool)
