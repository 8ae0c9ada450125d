"""Bootstrap intervals of weighted statistics: subjects are drawn, with all of their rows.

Rows of one subject resemble each other. Drawn one by one they would count as independent, and an
interval said to hold the truth 95 times of 100 would hold it far less often.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.weighted import Array, Statistic
from ehr_ray.evaluation.table import Interval

_CHUNK_ELEMENTS: Final = 1_000_000


def bootstrap(
    functions: Mapping[str, Statistic],
    n: int,
    *,
    subject: NDArray[Any] | None = None,
    seed: int = 0,
    num_bootstrap: int = 1000,
    biased: Mapping[str, Callable[[Array], Any]] | None = None,
) -> dict[str, Interval]:
    """Return the value of each statistic on n rows with its 2.5 % and 97.5 % quantiles.

    Args:
        functions: by name, all measured on the same resamples.
        n: rows; without any all is NaN.
        subject: whose each row is, [n]; None where each is of another subject.
        seed: of the resamples.
        num_bootstrap: resamples; 0 leaves the bounds NaN.
        biased: statistics that resampling alone makes larger, and the middle of the resamples that
            tells by how much: their bounds are moved by it.
    """
    if n == 0:
        return {name: Interval(np.nan, np.nan, np.nan) for name in functions}
    draws: dict[str, list[Array]] = {name: [] for name in functions}
    for weights in resamples(n, subject, seed, num_bootstrap):
        for name, function in functions.items():
            draws[name].append(function(weights))
    whole, middles = np.ones((1, n)), biased or {}
    return {
        name: interval_of(float(f(whole)[0]), draws[name], middles.get(name))
        for name, f in functions.items()
    }


def resamples(
    n: int, subject: NDArray[Any] | None, seed: int, num_bootstrap: int
) -> Iterator[Array]:
    """Yield counts float64 [r, n] of how often each row is drawn; chunks keep memory flat.

    As many subjects are drawn as there are, with replacement, each with all of its rows. Raises
    ValueError where `subject` does not have n rows.
    """
    group = np.arange(n) if subject is None else numbered(subject)
    if len(group) != n:
        raise ValueError(f"{len(group)} subjects for {n} rows")
    number = int(group.max()) + 1
    rng = np.random.default_rng(seed)
    done = 0
    while done < num_bootstrap:
        size = min(max(1, _CHUNK_ELEMENTS // n), num_bootstrap - done)
        drawn = rng.integers(0, number, size=(size, number)) + np.arange(size)[:, None] * number
        counts = np.bincount(drawn.ravel(), minlength=size * number).reshape(size, number)
        yield np.take(counts, group, axis=1).astype(np.float64)
        done += size


def numbered(subject: NDArray[Any]) -> NDArray[np.int64]:
    """Return subjects [n] as 0, 1, ... by first appearance: with one row each, the row's number."""
    _, first, group = np.unique(subject, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[group]


def interval_of(
    value: float, draws: list[Array], middle: Callable[[Array], Any] | None = None
) -> Interval:
    """Return a value with the 2.5 % and 97.5 % quantiles of its resamples; NaN among them is none.

    `middle` of a statistic that resampling makes larger moves the bounds; see `bootstrap`.
    """
    defined = np.concatenate(draws) if draws else np.zeros(0)
    defined = defined[~np.isnan(defined)]
    if np.isnan(value) or not defined.size:
        return Interval(float(value), np.nan, np.nan)
    low, high = np.quantile(defined, (0.025, 0.975))
    if middle is not None:
        bias = middle(defined) - value
        low, high = max(0.0, low - bias), high - bias
    return Interval(float(value), float(low), float(high))
