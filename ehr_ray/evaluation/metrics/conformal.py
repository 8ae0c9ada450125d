"""Split-conformal prediction sets of a yes-or-no risk, with a promise for each answer by itself.

Vovk et al. (2005), Algorithmic Learning in a Random World, label-conditional inductive predictor.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MISS: Final = 0.1
"""Share of rows, of either class, whose answer may be missing from its set."""


@dataclass(frozen=True)
class PredictionSets:
    """Which answers are held possible at a probability: yes, no, both or neither.

    Of new rows of either class, drawn as those it was fitted on, the set holds the true answer
    with a probability of at least `1 - miss`.
    """

    miss: float
    least_yes: float
    """Yes is possible from this probability on; -inf: always."""
    most_no: float
    """No is possible up to this probability; inf: always."""

    def possible(self, probability: NDArray[Any]) -> NDArray[np.bool_]:
        """Return whether no, and whether yes, is in the set of each row: bool [N, 2]."""
        p = np.asarray(probability, dtype=np.float64)
        return np.stack([p <= self.most_no, p >= self.least_yes], axis=1)


def fit_sets(
    probability: NDArray[Any], label: NDArray[Any], *, miss: float = MISS
) -> PredictionSets:
    """Fit on rows that neither trained nor are judged: probabilities float [N], labels bool [N].

    An answer of which there are too few rows to promise anything is in every set.
    """
    p, y = np.asarray(probability, dtype=np.float64), np.asarray(label, dtype=bool)
    return PredictionSets(miss, -_bound(-p[y], miss), _bound(p[~y], miss))


def _bound(score: NDArray[np.float64], miss: float) -> float:
    """Return the bound below which the score of a new row lies with probability `1 - miss`."""
    # Rounded, or 0.9 * 10 would be a little more than 9.
    rank = math.ceil(round((len(score) + 1) * (1 - miss), 9))
    return math.inf if rank > len(score) else float(np.sort(score)[rank - 1])
