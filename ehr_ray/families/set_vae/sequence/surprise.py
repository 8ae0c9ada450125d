"""How far a set's values are from what was to be expected of each, by the past and by each other.

A measured value is expected by the variable's last one and by the model's prior, linearly; what
is left is compared with what is left of the set's other values, as a multivariate normal has it
(the diagonal of the inverse covariance: Rue and Held 2005, section 2.2). V variables of the
vocabulary, K of them with a correlation.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]

SET = ["sample", "set", "kind"]
MIN_SPREAD = 0.05
"""Of a variable's scale. A carried value, which must be the last one, has this spread."""
MIN_ROWS = 50
"""A variable of fewer values is expected at its last one, or at what the prior says."""
MOST_CORRELATED = 256
"""Variables with a correlation, those with most values; others are judged by their past alone."""
_PRIOR_PAIRS = 50.0
"""Pairs of values that a correlation of 0 counts as."""
_EIGENVALUE = 0.05
"""Least eigenvalue of the correlations: of variables that tell each other all but exactly."""
_OUTLIER = 4.0
_CELLS = 4_000_000


@dataclass(frozen=True)
class Expectations:
    """What the values of recorded stays let one expect.

    Args:
        coefficients: of the last value, the prior's and 1, [V, 2, 3]: without a last value, with.
        spread: root mean square of what is left, without the 1 % furthest out, [V, 2].
        correlation: of what is left of variables measured together, [K, K].
        place: of each variable in it, [V]; K where it has none.
    """

    coefficients: Array
    spread: Array
    correlation: Array
    place: NDArray[np.int64]


def expectations(recorded: pd.DataFrame, variables: int) -> Expectations:
    """Fit to the rows of `value_table.values` that are recorded, of a vocabulary of V codes."""
    coefficients = np.zeros((variables, 2, 3))
    coefficients[:, 0, 1] = coefficients[:, 1, 0] = 1.0
    spread = np.ones((variables, 2))
    key: Any  # pandas types it as Hashable
    for key, rows in recorded.groupby(["code", recorded["last"].notna()], sort=True):
        if len(rows) >= MIN_ROWS:
            code, has = key
            inputs, value = _inputs(rows), rows["value"].to_numpy(np.float64)
            found = coefficients[code, int(has)] = _robust_line(inputs, value)
            spread[code, int(has)] = _spread(value - inputs @ found)
    counts = np.bincount(recorded["code"], minlength=variables)
    told = np.sort(np.argsort(-counts, kind="stable")[:MOST_CORRELATED])
    told = told[counts[told] >= MIN_ROWS]
    place = np.full(variables, len(told))
    place[told] = np.arange(len(told))
    first = Expectations(coefficients, spread, np.eye(len(told)), place)
    return Expectations(coefficients, spread, _correlation(first, recorded), place)


def surprises(expected: Expectations, values: pd.DataFrame) -> pd.DataFrame:
    """Return `sample, set, kind`, `surprise` and `code`, a row a set: its most surprising value.

    `surprise` is that value's distance, in spreads, from what its past and the other values
    measured then let one expect.
    """
    order = np.lexsort([values[name] for name in reversed(SET)])
    rows = values.iloc[order]
    distance = np.zeros(len(rows))
    left = residuals(expected, rows)
    none = len(expected.correlation)
    place = np.where(rows["carried"], none, expected.place[rows["code"]])
    for sets in _equal_groups(rows):
        inside = place[sets]
        with_none = np.pad(expected.correlation, (0, 1))
        covariance = with_none[inside[:, :, None], inside[:, None, :]]
        diagonal = np.arange(sets.shape[1])
        covariance[:, diagonal, diagonal] = 1.0
        inverse = np.linalg.inv(covariance)
        alone = np.einsum("gij,gj->gi", inverse, left[sets])
        distance[sets] = np.abs(alone) / np.sqrt(inverse[:, diagonal, diagonal])
    found = rows[[*SET, "code"]].assign(surprise=distance)
    return found.loc[found.groupby(SET, sort=False)["surprise"].idxmax()].reset_index(drop=True)


def residuals(expected: Expectations, rows: pd.DataFrame) -> Array:
    """Return what is left of each value, in spreads of its variable, [rows]."""
    code, has = rows["code"].to_numpy(), rows["last"].notna().to_numpy(np.int64)
    mean = (_inputs(rows) * expected.coefficients[code, has]).sum(1)
    value = rows["value"].to_numpy(np.float64)
    carried = rows["carried"].to_numpy() & (has == 1)
    left = np.where(carried, value - rows["last"].fillna(0.0), value - mean)
    return left / np.where(carried, MIN_SPREAD, expected.spread[code, has])


def _inputs(rows: pd.DataFrame) -> Array:
    columns = (rows["last"].fillna(0.0), rows["expected"], np.ones(len(rows)))
    return np.stack([np.asarray(column, np.float64) for column in columns], 1)


def _robust_line(inputs: Array, value: Array) -> Array:
    """Return the coefficients by reweighted least squares with a Cauchy weight."""
    weight = np.ones(len(value))
    for _ in range(8):
        weighted = inputs * weight[:, None]
        found = np.linalg.solve(weighted.T @ inputs + 1e-3 * np.eye(3), weighted.T @ value)
        left = np.abs(value - inputs @ found)
        scale = 2 * (1.4826 * np.median(left) + 1e-3)
        weight = 1 / (1 + np.square(left / scale))
    return np.asarray(found)


def _spread(left: Array) -> float:
    low, high = np.quantile(left, [0.005, 0.995])
    return max(MIN_SPREAD, float(np.sqrt(np.mean(np.square(left.clip(low, high))))))


def _correlation(expected: Expectations, recorded: pd.DataFrame) -> Array:
    """Return the correlations of what is left over the sets in which both were measured."""
    size = len(expected.correlation)
    place = expected.place[recorded["code"]]
    rows = recorded[place < size]
    left = residuals(expected, rows).clip(-_OUTLIER, _OUTLIER)
    sets = rows.groupby(SET, sort=False).ngroup().to_numpy()
    grid, there = (np.zeros((sets.max(initial=-1) + 1, size), np.float32) for _ in range(2))
    grid[sets, place[place < size]] = left
    there[sets, place[place < size]] = 1
    pairs = (there.T @ there).astype(np.float64)
    squares = (np.square(grid).T @ there).astype(np.float64)
    found = (grid.T @ grid) / np.sqrt(np.maximum(squares * squares.T, 1e-9))
    found *= pairs / (pairs + _PRIOR_PAIRS)
    np.fill_diagonal(found, 1.0)
    values, vectors = np.linalg.eigh(found)
    found = (vectors * np.maximum(values, _EIGENVALUE)) @ vectors.T
    scale = np.sqrt(np.diag(found))
    return np.asarray(found / scale / scale[:, None])


def _equal_groups(rows: pd.DataFrame) -> Iterator[NDArray[np.int64]]:
    """Yield the places of rows of sets that have equally many, [sets, rows of one]."""
    sizes = rows.groupby(SET, sort=False).size().to_numpy()
    first = np.cumsum(sizes) - sizes
    for size in np.unique(sizes):
        starts = first[sizes == size]
        step = max(1, _CELLS // int(size) ** 2)
        for at in range(0, len(starts), step):
            yield starts[at : at + step, None] + np.arange(size)
