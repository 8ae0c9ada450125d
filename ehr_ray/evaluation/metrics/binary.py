"""Metrics of a binary risk score with bootstrap intervals; numpy in, floats out.

Every metric is written for weights, so a bootstrap resample is a row of counts, the
probabilities are sorted once, and all resamples are computed together. Metrics that a split
cannot define (AUROC with one class only) are NaN here and dropped, with a note, on writing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.table import Interval

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Weights float[R, n] of R resamples (1 = the data as they are) to one value a resample."""

METRICS: Final = (
    "auroc",
    "auprc",
    "min_se_ppv",
    "sensitivity",
    "specificity",
    "ppv",
    "brier",
    "ece",
    "event2",
    "prevalence",
)
ECE_BINS: Final = 10
_HOSMER_FLOOR: Final = 0.001
"""Added to each variance of `event2`, as the challenge does, so that a risk of 0 divides too."""
_BIASED: Final[Mapping[str, Callable[[Array], Any]]] = {"ece": np.mean, "event2": np.median}
"""Sums over bins of how far off they are, which resampling alone makes larger, and the middle of
the resamples that tells by how much; few resamples of `event2` are far above all others."""
_CHUNK_ELEMENTS: Final = 1_000_000


def binary_metrics(
    label: NDArray[Any],
    probability: NDArray[Any],
    *,
    threshold: float,
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
    97.5 % quantiles over `num_bootstrap` resamples of rows; those of `ece` and `event2` are
    shifted by their bootstrap bias, since resampling adds noise to every bin.
    """
    y, p = _checked(label, probability)
    out: dict[str, float] = {"n": float(y.size)}
    functions = statistics(y, p, threshold)
    chosen = {name: functions[name] for name in names}
    intervals = _bootstrap(chosen, y.size, seed, num_bootstrap)
    for name, interval in intervals.items():
        out[name] = interval.value
        out[f"{name}/low"], out[f"{name}/high"] = interval.low, interval.high
    return out


def choose_threshold(label: NDArray[Any], probability: NDArray[Any]) -> float:
    """The threshold that maximises min(sensitivity, precision) on these rows.

    It lies half-way between the last score called positive and the next lower one; ties go to
    the higher threshold. Without a positive row nothing can be chosen: 0.5.
    """
    y, p = _checked(label, probability)
    if not y.any():
        return 0.5
    order = np.argsort(-p, kind="stable")
    score, hits = p[order], np.cumsum(y[order])
    last_of_tie = np.append(score[1:] != score[:-1], True)
    ranks = np.arange(1, y.size + 1)
    smaller = np.minimum(hits / y.sum(), hits / ranks)[last_of_tie]
    levels = score[last_of_tie]
    best = int(np.argmax(smaller))
    following = levels[best + 1] if best + 1 < levels.size else levels[best]
    middle = 0.5 * (levels[best] + following)
    # Two neighbouring floats have no middle: rounding would call the lower one positive too.
    return float(middle if middle > following else levels[best])


def paired_difference(
    label: NDArray[Any],
    p_a: NDArray[Any],
    p_b: NDArray[Any],
    metric: str,
    *,
    thresholds: tuple[float, float] = (0.5, 0.5),
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> Interval:
    """Metric of `p_a` minus metric of `p_b` on the same rows, resampled together.

    `thresholds` (one a model) matter only for metrics at a threshold.
    """
    found = paired_differences(
        label, p_a, p_b, (metric,), thresholds=thresholds, seed=seed, num_bootstrap=num_bootstrap
    )
    return found[metric]


def paired_differences(
    label: NDArray[Any],
    p_a: NDArray[Any],
    p_b: NDArray[Any],
    metrics: Sequence[str],
    *,
    thresholds: tuple[float, float] = (0.5, 0.5),
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> dict[str, Interval]:
    """Return `paired_difference` of several metrics, from the same resamples."""
    y, a = _checked(label, p_a)
    _, b = _checked(label, p_b)
    first, second = statistics(y, a, thresholds[0]), statistics(y, b, thresholds[1])
    difference: dict[str, Statistic] = {
        name: partial(_difference, first=first[name], second=second[name]) for name in metrics
    }
    # The bias that `_interval` takes off is nearly the same in both and cancels here.
    return _bootstrap(difference, y.size, seed, num_bootstrap, biased={})


def undefined(metrics: Mapping[str, float]) -> list[str]:
    """Name the metrics that are NaN, without their interval bounds."""
    missing = (name for name, value in metrics.items() if np.isnan(value))
    return sorted(name for name in missing if not name.endswith(("/low", "/high")))


def statistics(label: Array, probability: Array, threshold: float = 0.5) -> dict[str, Statistic]:
    """Each of `METRICS` as a function of row weights, sorted and binned once."""
    order = np.argsort(probability, kind="stable")
    y, p = label[order], probability[order]
    ties = np.append(p[1:] != p[:-1], True) if p.size else np.zeros(0, bool)
    called = (probability >= threshold).astype(np.float64)
    ranked: dict[str, Callable[[Array, Array, NDArray[np.bool_]], Array]] = {
        "auroc": _auroc,
        "auprc": _average_precision,
    }
    out: dict[str, Statistic] = {
        name: lambda w, f=function: f(w[:, order], y, ties)  # type: ignore[misc]
        for name, function in ranked.items()
    }
    for name in ("sensitivity", "specificity", "ppv", "min_se_ppv"):
        out[name] = partial(_at_threshold, name=name, y=label, called=called)
    out["brier"] = partial(_mean_of, x=np.square(probability - label))
    bins = _equal_mass_bins(p)
    out["ece"] = lambda w: _ece(w[:, order], y - p, bins)
    out["event2"] = lambda w: _event2(w[:, order], y, p, bins)
    out["prevalence"] = partial(_mean_of, x=label)
    return {name: out[name] for name in METRICS}


def _checked(label: NDArray[Any], probability: NDArray[Any]) -> tuple[Array, Array]:
    y = np.asarray(label, dtype=np.float64).ravel()
    p = np.asarray(probability, dtype=np.float64).ravel()
    if y.size != p.size:
        raise ValueError(f"{y.size} labels but {p.size} probabilities")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1: drop rows without a label first")
    if not np.isfinite(p).all():
        raise ValueError("probabilities must be finite: the model returned NaN or infinity")
    return y, p


def _bootstrap(
    functions: Mapping[str, Statistic],
    n: int,
    seed: int,
    num_bootstrap: int,
    biased: Mapping[str, Callable[[Array], Any]] = _BIASED,
) -> dict[str, Interval]:
    if n == 0:
        return {name: Interval(np.nan, np.nan, np.nan) for name in functions}
    draws: dict[str, list[Array]] = {name: [] for name in functions}
    for weights in _resamples(n, seed, num_bootstrap):
        for name, function in functions.items():
            draws[name].append(function(weights))
    whole = np.ones((1, n))
    return {
        name: _interval(f(whole)[0], draws[name], biased.get(name)) for name, f in functions.items()
    }


def _interval(value: float, draws: list[Array], middle: Callable[[Array], Any] | None) -> Interval:
    defined = np.concatenate(draws) if draws else np.zeros(0)
    defined = defined[~np.isnan(defined)]
    if np.isnan(value) or not defined.size:
        return Interval(float(value), np.nan, np.nan)
    low, high = np.quantile(defined, (0.025, 0.975))
    if middle is not None:
        bias = middle(defined) - value
        low, high = max(0.0, low - bias), high - bias
    return Interval(float(value), float(low), float(high))


def _resamples(n: int, seed: int, num_bootstrap: int) -> Iterator[Array]:
    """Counts float64[r, n] of how often each row is drawn; chunks keep memory flat."""
    rng = np.random.default_rng(seed)
    done = 0
    while done < num_bootstrap:
        size = min(max(1, _CHUNK_ELEMENTS // n), num_bootstrap - done)
        rows = rng.integers(0, n, size=(size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(rows.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        done += size


def _difference(w: Array, *, first: Statistic, second: Statistic) -> Array:
    return first(w) - second(w)


def _divide(a: Array, b: Array) -> Array:
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b > 0)


def _auroc(w: Array, y: Array, ties: NDArray[np.bool_]) -> Array:
    """Probability that a positive row scores above a negative one, ties counted half."""
    positive = np.cumsum(w * y, axis=1)[:, ties]
    negative = np.cumsum(w * (1.0 - y), axis=1)[:, ties]
    below = np.diff(negative, axis=1, prepend=0.0)
    pairs = np.diff(positive, axis=1, prepend=0.0) * (negative - 0.5 * below)
    return _divide(pairs.sum(axis=1), positive[:, -1] * negative[:, -1])


def _average_precision(w: Array, y: Array, ties: NDArray[np.bool_]) -> Array:
    """Sum over thresholds of precision times the recall gained (as scikit-learn defines it)."""
    hits = np.cumsum((w * y)[:, ::-1], axis=1)
    called = np.cumsum(w[:, ::-1], axis=1)
    # Ascending ties end at `ties`; read from the top, each group ends where the next begins.
    ends = np.append(ties[:-1][::-1], True)
    hits, called = hits[:, ends], called[:, ends]
    gained = np.diff(hits, axis=1, prepend=0.0)
    precision = np.nan_to_num(_divide(hits, called))
    return _divide((gained * precision).sum(axis=1), hits[:, -1])


def _at_threshold(w: Array, *, name: str, y: Array, called: Array) -> Array:
    """Sensitivity, specificity, ppv or their minimum; NaN where the denominator is empty."""
    true_positive, positive, flagged = w @ (y * called), w @ y, w @ called
    if name == "specificity":
        return _divide(w @ ((1 - y) * (1 - called)), w @ (1 - y))
    if name == "sensitivity":
        return _divide(true_positive, positive)
    if name == "ppv":
        return _divide(true_positive, flagged)
    sensitivity = _divide(true_positive, positive)
    # A model that flags nobody has no precision; its sensitivity, and so the minimum, is 0.
    return np.minimum(sensitivity, np.nan_to_num(_divide(true_positive, flagged)))


def _mean_of(w: Array, *, x: Array) -> Array:
    return _divide(w @ x, w.sum(axis=1))


def _equal_mass_bins(sorted_probability: Array) -> NDArray[np.int64]:
    """Bin of each sorted row; equal probabilities share the bin of the first of them."""
    n = sorted_probability.size
    first = np.searchsorted(sorted_probability, sorted_probability, side="left")
    return first * ECE_BINS // max(n, 1)


def _ece(w: Array, residual: Array, bins: NDArray[np.int64]) -> Array:
    sums = np.stack([w @ (residual * (bins == b)) for b in range(ECE_BINS)], axis=1)
    return _divide(np.abs(sums).sum(axis=1), w.sum(axis=1))


def _event2(w: Array, y: Array, p: Array, bins: NDArray[np.int64]) -> Array:
    """Hosmer-Lemeshow H over the range of the bins' mean risks; NaN where all risks are equal."""
    inside = [w * (bins == b) for b in np.unique(bins)]
    size = np.stack([v.sum(axis=1) for v in inside], axis=1)
    observed = np.stack([v @ y for v in inside], axis=1)
    expected = np.stack([v @ p for v in inside], axis=1)
    risk = _divide(expected, size)
    variance = np.nan_to_num(expected * (1.0 - risk)) + _HOSMER_FLOOR
    total = ((observed - expected) ** 2 / variance).sum(axis=1)
    # A resample may leave a bin empty; the range is of those it has.
    return _divide(total, np.nanmax(risk, axis=1) - np.nanmin(risk, axis=1))
