"""How widely the rows of a representation spread: rank and direction, N rows of D numbers."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_EPS: Final = 1e-12


def mean_pairwise_cosine(rows: Array) -> float:
    """Mean cosine over all pairs of different rows, from sums; rows of zeros count as 0."""
    n = rows.shape[0]
    if n < 2:
        return float("nan")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    total = np.square(unit.sum(axis=0)).sum() - np.square(unit).sum()
    return float(total / (n * (n - 1)))


def rankme(rows: Array) -> float:
    """Effective rank: exp(entropy of the normalised singular values), 1 to min(N, D)."""
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    if singular[-1] <= _EPS:
        return 0.0
    # Below the square root of the precision of the Gram matrix there is only rounding.
    singular = np.where(singular > 1e-7 * singular[-1], singular, 0.0)
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(share + _EPS)).sum()))
