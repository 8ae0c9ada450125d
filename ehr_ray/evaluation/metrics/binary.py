"""Metrics of a binary risk score with bootstrap intervals; numpy in, floats out.

Metrics that a split cannot define (AUROC with one class only) are NaN here and dropped, with a
note, on writing.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.bootstrap import bootstrap
from ehr_ray.evaluation.metrics.weighted import METRICS, Array, Statistic, checked, statistics
from ehr_ray.evaluation.table import Interval

_BIASED: Final[Mapping[str, Callable[[Array], Any]]] = {"ece": np.mean, "event2": np.median}
"""Sums over bins of how far off they are, which resampling alone makes larger, and the middle of
the resamples that tells by how much; few resamples of `event2` are far above all others."""


def binary_metrics(
    label: NDArray[Any],
    probability: NDArray[Any],
    *,
    threshold: float,
    subject: NDArray[Any] | None = None,
    seed: int = 0,
    num_bootstrap: int = 1000,
    names: Sequence[str] = METRICS,
) -> dict[str, float]:
    """Metrics of one split with `/low` and `/high` bounds, and `n`, as flat keys.

    A row is called positive where `probability >= threshold`; the threshold comes from another
    split (`choose_threshold` on tuning). `auprc` is average precision. `min_se_ppv` is the
    smaller of sensitivity and positive predictive value at the threshold: Event 1 of the
    PhysioNet/CinC Challenge 2012. `event2` is its Event 2, lower is better: the Hosmer-Lemeshow
    statistic over deciles of risk, sum of (O - E)^2 / (E (1 - E / n) + 0.001), divided by the
    difference of the mean risks of the highest and the lowest decile (`lemeshow.m` of
    physionet.org/content/challenge-2012; Hosmer and Lemeshow 2000). It grows with the number of
    rows: compare it on the same rows only. `ece` is the mean absolute difference of mean
    probability and observed rate over the same bins of equal mass. Intervals are the 2.5 % and
    97.5 % quantiles over `num_bootstrap` resamples of subjects (`subject` [n] says whose each row
    is; None: every row is another's); those of `ece` and `event2` are shifted by their bootstrap
    bias, since resampling adds noise to every bin.
    """
    y, p = checked(label, probability)
    out: dict[str, float] = {"n": float(y.size)}
    functions = statistics(y, p, threshold)
    chosen = {name: functions[name] for name in names}
    draws: dict[str, Any] = {"subject": subject, "seed": seed, "num_bootstrap": num_bootstrap}
    intervals = bootstrap(chosen, y.size, **draws, biased=_BIASED)
    for name, interval in intervals.items():
        out[name] = interval.value
        out[f"{name}/low"], out[f"{name}/high"] = interval.low, interval.high
    return out


def paired_differences(
    label: NDArray[Any],
    p_a: NDArray[Any],
    p_b: NDArray[Any],
    metrics: Sequence[str],
    *,
    thresholds: tuple[float, float] = (0.5, 0.5),
    subject: NDArray[Any] | None = None,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> dict[str, Interval]:
    """Each metric of `p_a` minus that of `p_b` on the same rows, resampled together by subject.

    `thresholds` (one a model) matter only for metrics at a threshold.
    """
    y, a = checked(label, p_a)
    _, b = checked(label, p_b)
    first, second = statistics(y, a, thresholds[0]), statistics(y, b, thresholds[1])
    difference: dict[str, Statistic] = {
        name: partial(_difference, first=first[name], second=second[name]) for name in metrics
    }
    # The bias of `ece` and `event2` is nearly the same in both and cancels here.
    draws: dict[str, Any] = {"subject": subject, "seed": seed, "num_bootstrap": num_bootstrap}
    return bootstrap(difference, y.size, **draws)


def undefined(metrics: Mapping[str, float]) -> list[str]:
    """Name the metrics that are NaN, without their interval bounds."""
    missing = (name for name, value in metrics.items() if np.isnan(value))
    return sorted(name for name in missing if not name.endswith(("/low", "/high")))


def _difference(w: Array, *, first: Statistic, second: Statistic) -> Array:
    return first(w) - second(w)
