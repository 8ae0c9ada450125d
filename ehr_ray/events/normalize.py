"""Values of events, scaled by the statistics of their code in train."""

from typing import Any

import numpy as np
import numpy.typing as npt

from ehr_ray.events.vocabulary import Vocabulary


def z_score(
    value: npt.NDArray[Any], code: npt.NDArray[Any], vocabulary: Vocabulary
) -> npt.NDArray[np.float32]:
    """Return `(value - location) / scale` of each event's code, float32 [E].

    An event without a value (NaN) of a code that has values in train is 0, the code's location:
    that it was measured is known, and no level is claimed. One of a code that never has a value is
    1: it is there. A code id of -1 (unknown) has location 0 and scale 1.
    """
    known = code >= 0
    safe = np.where(known, code, 0)
    valued, scaled = np.zeros(len(code), bool), value
    if len(vocabulary):
        location = np.where(known, vocabulary.location[safe], 0.0)
        scaled = (value - location) / np.where(known, vocabulary.scale[safe], 1.0)
        valued = known & vocabulary.valued[safe]
    return np.where(np.isnan(value), np.where(valued, 0.0, 1.0), scaled).astype(np.float32)
