"""One row of plain statistics a patient: of each code, over the whole record and by window."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class StatisticsReader:
    """Reads the statistics of the codes that have most events in train.

    Args:
        num_codes: C, the codes that get statistics.
        lookup: int64[V], the place of each code of the vocabulary among them, or -1.
        windows: W ascending hours before the prediction time at which windows end.
    """

    num_codes: int
    lookup: NDArray[np.int64]
    windows: tuple[float, ...]

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, max_codes: int, windows: Sequence[float]
    ) -> "StatisticsReader":
        """Return the reader of a vocabulary: the same one wherever a checkpoint is applied."""
        selected = select_codes(vocabulary.count, max_codes)
        return cls(len(selected), code_lookup(selected, len(vocabulary)), tuple(windows))

    @property
    def width(self) -> int:
        """Return the length of a row, F."""
        windows = len(self.windows) * len(WINDOW_STATISTICS)
        return self.num_codes * (len(STATISTICS) + len(TREND_STATISTICS) + windows)

    def __call__(self, patient: Patient) -> NDArray[np.float32]:
        """Return float32[F]: simple features of all codes, then trends, then windows; NaN: missing.

        Windows are counted back from the prediction time, of a whole patient from the last event.
        """
        end = patient.end_minute
        events = patient.minute, self.lookup[patient.code], patient.value, patient.static
        edges = [end - 60 * hours for hours in (*reversed(self.windows), 0)]
        counted: Any = {"num_codes": self.num_codes, "end_minute": max(1.0, end)}
        whole = simple_features(*events, **counted), trend_features(*events, **counted)
        return np.concatenate([*whole, window_features(*events, **counted, windows=edges)])
