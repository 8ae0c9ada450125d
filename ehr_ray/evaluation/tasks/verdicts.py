"""Differences between a model and its baselines in plain words: what is lost is said first."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from ehr_ray.evaluation.table import Interval
from ehr_ray.evaluation.tasks.baselines import SHORT_TITLES

MODEL: Final = "model"
PROBE: Final = "probe"
"""The linear probe on a fine-tuned model's embedding, beside the model's own output."""
NETWORK: Final = "network"
"""The model's own output where an ensemble with baselines is what is judged."""
TREES: Final = "gbm"
BLEND: Final = "trees_and_model"
"""Mean of the calibrated probabilities of the trees and the model: better than the trees alone
where the model knows something that they do not."""
BASELINES: Final = (
    TREES,
    "gbm_rich",
    "logistic",
    "logistic_rich",
    "average_rich",
    "pca",
    "untrained",
)


LOWER_IS_BETTER: Final = frozenset({"event2", "brier", "ece", "mae", "rmse", "log_loss"})
"""Metrics of errors."""


def verdicts(
    metrics: Mapping[str, float],
    split: str,
    metric: str = "auroc",
    names: Sequence[str] = (NETWORK, PROBE, *BASELINES),
) -> tuple[str, ...]:
    """A plain sentence a baseline on the difference in `metric`, strongest baseline first.

    The model loses to (or beats) a baseline when the whole interval of the difference lies
    below (above) 0, of an error above (below); otherwise the data cannot tell them apart, and the
    sentence says so.
    """
    rows, sign = [], 1 if metric in LOWER_IS_BETTER else -1
    for name in names:
        key = f"baseline/{name}/{split}/{metric}"
        value = metrics.get(key, np.nan)
        difference = interval(metrics, f"{key}_difference")
        if not np.isnan(value) and not np.isnan(difference.value):
            rows.append((sign * value, _sentence(name, difference, metric)))
    return tuple(sentence for _, sentence in sorted(rows, key=lambda row: row[0]))


def judgement(metrics: Mapping[str, float], split: str) -> tuple[str, ...]:
    """Return the sentences of a report: what is lost first, AUROC and AUPRC both.

    AUROC gets a sentence for each baseline; AUPRC, which a rare outcome moves more, only where
    the data tell the two apart.
    """
    told = [s for s in verdicts(metrics, split, "auprc") if not s.startswith("cannot")]
    sentences = (*verdicts(metrics, split), *told)
    return tuple(sorted(sentences, key=lambda sentence: not sentence.startswith("loses")))


def gain(metrics: Mapping[str, float], split: str) -> tuple[str, ...]:
    """Return what the model adds to the trees when the two are averaged, on AUROC and AUPRC."""
    sentences = []
    for metric in ("auroc", "auprc"):
        found = interval(metrics, f"baseline/{BLEND}/{split}/{metric}_gain")
        if np.isnan(found.value):
            continue
        if found.low > 0:
            text = f"adds {found} {metric.upper()} to the trees when averaged with them"
        elif found.high < 0:
            text = f"takes {_size(found)} {metric.upper()} from the trees when averaged with them"
        else:
            text = (
                f"adds no {metric.upper()} that shows to the trees when averaged with them: "
                f"{signed(found)}"
            )
        sentences.append(text)
    return tuple(sentences)


def outcome(difference: Interval, *, more_is_better: bool = True) -> str:
    """Return `beats`, `ties` or `loses` from model minus baseline, or nothing without interval."""
    if np.isnan(difference.low):
        return ""
    if difference.low <= 0 <= difference.high:
        return "ties"
    return "beats" if (difference.low > 0) == more_is_better else "loses"


def metric_prefix(model: str, split: str) -> str:
    """Return the prefix of a row's metrics: `held_out`, or `baseline/gbm/held_out`."""
    return split if model == MODEL else f"baseline/{model}/{split}"


def interval(metrics: Mapping[str, float], key: str) -> Interval:
    """Return the value and bounds under `key`, `key/low` and `key/high`; NaN where absent."""
    return Interval(*(metrics.get(f"{key}{end}", np.nan) for end in ("", "/low", "/high")))


def signed(difference: Interval) -> str:
    """Write a difference with its sign and interval."""
    d = difference.digits
    return f"{difference.value:+.{d}f} [{difference.low:+.{d}f}, {difference.high:+.{d}f}]"


def _sentence(name: str, difference: Interval, metric: str) -> str:
    title, size, shown = SHORT_TITLES[name], _size(difference), metric.upper().replace("_", " ")
    word = outcome(difference, more_is_better=metric not in LOWER_IS_BETTER)
    if word == "loses":
        return f"loses to {title} by {size} {shown}"
    if word == "beats":
        return f"beats {title} by {size} {shown}"
    return f"cannot be told apart from {title}: difference {signed(difference)} {shown}"


def _size(difference: Interval) -> Interval:
    return Interval(abs(difference.value), *sorted((abs(difference.low), abs(difference.high))))
