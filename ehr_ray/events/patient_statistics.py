"""The rich features of the baselines as what a head reads: a row of statistics a patient."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehr_ray.events.features import select_codes
from ehr_ray.events.patient_features import MAX_MEASURED, FeatureCodes, FeatureReader
from ehr_ray.events.patients import MICROSECONDS_PER_MINUTE, Patient
from ehr_ray.events.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class StatisticsReader:
    """Reads the rich features of the codes that most train patients have."""

    features: FeatureReader

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, max_codes: int, windows: Sequence[float]
    ) -> "StatisticsReader":
        """Return the reader of a vocabulary: the same one wherever a checkpoint is applied."""
        simple = select_codes(vocabulary.subjects, max_codes)
        valued = np.where(vocabulary.valued, vocabulary.subjects, 0)
        measured = select_codes(valued, min(max_codes, MAX_MEASURED))
        codes = FeatureCodes(tuple(simple.tolist()), tuple(measured.tolist()))
        return cls(FeatureReader(vocabulary, codes, tuple(windows)))

    @property
    def width(self) -> int:
        """Return the length of a row, F."""
        return self.features.width

    @property
    def variables(self) -> NDArray[np.int64]:
        """Return the variable of each statistic, int[F], ascending from 0; -1 has none."""
        _, variables = np.unique(self.features.variables, return_inverse=True)
        return np.where(self.features.variables < 0, -1, variables - 1)

    @property
    def unmeasured(self) -> NDArray[np.float32]:
        """Return the statistics of a variable that was not measured, float32[F]."""
        return self.features.unmeasured

    def __call__(self, patient: Patient) -> NDArray[np.float32]:
        """Return float32[F] of what is known at the prediction time; NaN is missing.

        Windows are counted back from there, of a whole patient from the last event.
        """
        time = patient.origin + round(patient.end_minute * MICROSECONDS_PER_MINUTE)
        return self.features.rich(patient, time)
