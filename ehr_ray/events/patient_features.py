"""What baselines read of a patient at a prediction time: simple features and rich ones.

Simple: the statistics of every selected code, static values, and who the patient is at that time
(`CONTEXT`). Rich: besides these, means by window and trends of the codes that are measured, and the
same, with simple features, of variables derived from them.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.events.derived_variables import Rule, derivable, derived_events
from ehr_ray.events.features import (
    STATISTICS,
    TREND_STATISTICS,
    WINDOW_STATISTICS,
    code_lookup,
    select_codes,
    simple_features,
    trend_features,
    window_features,
)
from ehr_ray.events.manifest import Manifest
from ehr_ray.events.patients import Patient
from ehr_ray.events.schema import is_birth
from ehr_ray.events.vocabulary import Vocabulary

CONTEXT: Final = ("age", "hours_since_origin", "hours_since_admission", "prior_admissions")
"""Columns beside those of the codes, in order."""
WINDOW_SHARES: Final = (0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Bounds of the windows as shares of the time from the origin to the prediction: 0, 6, 12, 24, 36
and 48 hours of a prediction at 48 hours."""
AGE_CODES: Final = ("Age", "AGE", "age")
"""Codes whose value is the age in years where no birth is known."""
MAX_CODES: Final = 200
"""Codes that get simple features at most, and as many static ones: those most patients have."""
MAX_MEASURED: Final = 64
"""Codes that get windows and trends at most."""
_COUNTED: Final = ("num_subjects", "num_timed", "num_static")
_MEAN: Final = WINDOW_STATISTICS.index("mean")
"""Of a window trees need the mean alone: with minimum, maximum and count they are no better."""
_MICROSECONDS_PER_HOUR: Final = 3.6e9
_HOURS_PER_YEAR: Final = 365.25 * 24


@dataclass(frozen=True)
class FeatureCodes:
    """Which codes get features, as ascending vocabulary ids."""

    simple: tuple[int, ...]
    measured: tuple[int, ...] = ()
    """Those that get windows and trends too."""


def choose_codes(
    patients: NDArray[np.integer],
    timed: NDArray[np.integer],
    static: NDArray[np.integer],
    valued: NDArray[np.bool_],
) -> FeatureCodes:
    """Choose by the number of train patients who have a code, static codes beside all others.

    Args:
        patients: int[V], with any event of each code.
        timed: int[V], with a timed one.
        static: int[V], with a static one.
        valued: bool[V], whether the code has numeric values.
    """
    simple = np.union1d(select_codes(patients, MAX_CODES), select_codes(static, MAX_CODES))
    measured = select_codes(np.where(valued, timed, 0), MAX_MEASURED)
    return FeatureCodes(tuple(simple.tolist()), tuple(measured.tolist()))


def feature_codes(
    manifest: Manifest, vocabulary: Vocabulary, allowed: NDArray[np.bool_] | None = None
) -> FeatureCodes:
    """Choose the codes that get features by the patients of train.

    `allowed` leaves out codes, bool [V].
    """
    counts = manifest.by_code(_COUNTED, "train")
    code = vocabulary.encode(list(counts))
    patients, timed, static = np.zeros((len(_COUNTED), len(vocabulary)), np.int64)
    for kind, one in enumerate((patients, timed, static)):
        numbers = np.array([row[kind] for row in counts.values()], np.int64)
        one[code[code >= 0]] = numbers[code >= 0]
        if allowed is not None:
            one[~allowed] = 0
    valued = np.asarray(~np.isnan(vocabulary.quantiles).any(axis=1))
    return choose_codes(patients, timed, static, valued)


@dataclass(frozen=True, eq=False)
class FeatureReader:
    """The features of a vocabulary's patients.

    Args:
        vocabulary: of the patients' codes.
        codes: that get features.
        windows: hours before the prediction at which windows end, ascending, the first from 0; by
            shares of the time since the origin where none are given.
    """

    vocabulary: Vocabulary
    codes: FeatureCodes
    windows: tuple[float, ...] = ()

    @cached_property
    def width(self) -> int:
        """Return the length of a row of rich features, F."""
        windows = len(self.windows) or len(WINDOW_SHARES) - 1
        course, made = windows + len(TREND_STATISTICS), len(self._derived[0])
        simple = len(STATISTICS) * (len(self.codes.simple) + made) + len(CONTEXT)
        return simple + course * (len(self.codes.measured) + made)

    @cached_property
    def variables(self) -> NDArray[np.int64]:
        """Return the variable of each column of `rich`, int[F].

        A code is its vocabulary id, a derived variable comes after all codes; -1 is `CONTEXT`.
        """
        made = len(self.vocabulary) + np.arange(len(self._derived[0]))
        windows = len(self.windows) or len(WINDOW_SHARES) - 1
        parts = [np.repeat(self.codes.simple, len(STATISTICS)), np.full(len(CONTEXT), -1)]
        for variables in (np.array(self.codes.measured, np.int64), made):
            parts += [np.repeat(variables, size) for size in (windows, len(TREND_STATISTICS))]
        return np.concatenate([*parts, np.repeat(made, len(STATISTICS))]).astype(np.int64)

    @cached_property
    def unmeasured(self) -> NDArray[np.float32]:
        """Return what columns of `rich` say of a variable that has no event, float32[F]."""
        codes, made = len(self.codes.simple), len(self._derived[0])
        none = (np.zeros(0), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
        table = simple_features(*none, num_codes=codes + made, end_minute=1)
        codes *= len(STATISTICS)
        between = np.full(self.width - len(table), np.nan, np.float32)
        return np.concatenate([table[:codes], between, table[codes:]])

    def rich(self, patient: Patient, time: int) -> NDArray[np.float32]:
        """Return float32[F] of what is known at `time`: simple features, then all others."""
        return np.concatenate([self.simple(patient, time), self.extra(patient, time)])

    def simple(self, patient: Patient, time: int) -> NDArray[np.float32]:
        """Return float32[10 * C + 4] of what is known at `time` (microseconds since 1970)."""
        end = self._end(patient, time)
        row = simple_features(
            patient.minute,
            self._lookup[patient.code],
            patient.value,
            patient.static,
            num_codes=len(self.codes.simple),
            end_minute=end,
        )
        return np.concatenate([row, self._context(patient, time)])

    def extra(self, patient: Patient, time: int) -> NDArray[np.float32]:
        """Return what rich features have beyond simple ones: windows, trends, derived variables."""
        end = self._end(patient, time)
        windows = [share * end for share in WINDOW_SHARES]
        if self.windows:
            windows = [end - 60 * hours for hours in (*reversed(self.windows), 0)]
        code = self._measured_lookup[patient.code]
        given = (patient.minute, code, patient.value, patient.static)
        number = len(self.codes.measured)
        names, rules = self._derived
        raw = (patient.minute, patient.code, patient.value, patient.static)
        minute, variable, value = derived_events(*raw, rules)
        made = (minute, variable, value, np.zeros(len(minute), bool))
        parts = []
        for events, count in ((given, number), (made, len(names))):
            by_window = window_features(*events, num_codes=count, end_minute=end, windows=windows)
            parts += [
                by_window.reshape(-1, len(WINDOW_STATISTICS))[:, _MEAN],
                trend_features(*events, num_codes=count, end_minute=end),
            ]
        return np.concatenate(
            [*parts, simple_features(*made, num_codes=len(names), end_minute=end)]
        )

    @staticmethod
    def _end(patient: Patient, time: int) -> float:
        """Return the minute of the prediction; at least 1, so that windows have a width."""
        return max(1.0, (time - patient.origin) / 60e6)

    def _context(self, patient: Patient, time: int) -> NDArray[np.float32]:
        admitted = patient.admitted[patient.admitted <= time]
        last = admitted[-1] if len(admitted) else patient.origin
        since_origin, since_last = (time - at for at in (patient.origin, last))
        return np.array(
            [
                self._age(patient, time),
                since_origin / _MICROSECONDS_PER_HOUR,
                since_last / _MICROSECONDS_PER_HOUR,
                max(0, len(admitted) - 1),
            ],
            np.float32,
        )

    def _age(self, patient: Patient, time: int) -> float:
        birth, age = self._age_codes
        born = np.flatnonzero(birth[patient.code] & ~patient.static)
        if born.size:
            hours = (time - patient.time[born[0]]) / _MICROSECONDS_PER_HOUR
            return float(hours / _HOURS_PER_YEAR)
        told = np.flatnonzero(age[patient.code] & ~np.isnan(patient.value) & (patient.time <= time))
        return float(patient.value[told[-1]]) if told.size else np.nan

    @cached_property
    def _lookup(self) -> NDArray[np.int64]:
        return code_lookup(np.asarray(self.codes.simple, np.int64), len(self.vocabulary))

    @cached_property
    def _measured_lookup(self) -> NDArray[np.int64]:
        return code_lookup(np.asarray(self.codes.measured, np.int64), len(self.vocabulary))

    @cached_property
    def _derived(self) -> tuple[list[str], list[Rule]]:
        return derivable(self.vocabulary.codes)

    @cached_property
    def _age_codes(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Which codes are a birth, and which an age, bool [V] each."""
        codes = self.vocabulary.codes
        birth = np.array([is_birth(code) for code in codes], bool)
        return birth, np.array([code in AGE_CODES for code in codes], bool)
