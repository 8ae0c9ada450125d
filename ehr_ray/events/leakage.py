"""A column that answers the question by itself: the automatic check for leaks."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ehr_ray.errors import InputError
from ehr_ray.events.auroc import auroc

LIMIT: Final = 0.95
"""AUROC of one column, in either direction, above which it is taken for the answer."""
FEWEST: Final = 20
"""Rows of each class without which a high AUROC of one column may be chance."""


def column_discrimination(
    columns: npt.NDArray[np.floating], label: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """Return max(AUROC, 1 - AUROC) of each column where it is observed, float64 [D].

    `columns` float [N, D] with NaN for missing; `label` 1, 0, or -1 for unknown. NaN where either
    class has fewer than 20 observed rows. Whether a value is missing counts as a column too: the
    higher of the two is returned.
    """
    known = label >= 0
    x, y = np.asarray(columns, np.float64)[known], label[known] == 1
    there = ~np.isnan(x)
    result = np.full(x.shape[1], np.nan)
    for place in range(x.shape[1]):
        seen = there[:, place]
        found = [
            _discrimination(x[seen, place], y[seen]),
            _discrimination(seen.astype(float), y),
        ]
        kept = [max(value, 1 - value) for value in found if not np.isnan(value)]
        result[place] = max(kept) if kept else np.nan
    return result


def require_no_leak(
    columns: npt.NDArray[np.floating],
    names: Sequence[str],
    label: npt.NDArray[np.integer],
    task: str,
) -> None:
    """Raise InputError naming the column that by itself tells the label with AUROC above 0.95."""
    found = column_discrimination(columns, label)
    if not np.isfinite(found).any():
        return
    worst = int(np.nanargmax(found))
    if found[worst] > LIMIT:
        raise InputError(
            f"{names[worst]}: this column alone tells {task} with AUROC {found[worst]:.3f}, as one "
            "does that was written after the outcome; remove the column"
        )


def _discrimination(score: npt.NDArray[np.float64], label: npt.NDArray[np.bool_]) -> float:
    """Return the AUROC of a column; NaN with too few rows of a class."""
    if min(int(label.sum()), int((~label).sum())) < FEWEST:
        return np.nan
    return auroc(label, score)
