"""Results of repeated cross-validation: scores a fold, their spread, and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ehr_ray.evaluation.markdown import table_lines
from ehr_ray.evaluation.metrics.survival import weighted_scores
from ehr_ray.evaluation.metrics.thresholds import f1
from ehr_ray.evaluation.table import Interval

METRICS: Final = ("auroc", "auprc", "f1", "brier")
"""What is measured on the predictions of every model."""
KEYS: Final = ["model", "outcome", "repeat", "fold"]


def fold_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return `METRICS` and the number of rows `n` of each model, outcome and fold.

    Rows of `predictions` are those of a fold's test part: `KEYS`, `label` (bool), `probability` of
    the positive class and the `threshold` from which on it is called positive.
    """
    rows = []
    for key, part in predictions.groupby(KEYS, sort=False):
        y, p = part["label"].to_numpy(), part["probability"].to_numpy()
        found = weighted_scores(y, p, np.ones(len(y)))
        found["f1"] = f1(y, p >= part["threshold"].to_numpy())
        named = {metric: found[metric] for metric in METRICS}
        rows.append(dict(zip(KEYS, key, strict=True)) | named | {"n": len(part)})
    return pd.DataFrame(rows, columns=[*KEYS, *METRICS, "n"])


def spread(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over folds: `outcome, model, metric, mean, std, folds`.

    `scores` has `KEYS` and a column a metric; folds in which one is NaN do not count.
    """
    values = scores.drop(columns="n", errors="ignore")
    long = values.melt(KEYS, var_name="metric").dropna(subset="value")
    grouped = long.groupby(["outcome", "model", "metric"], sort=False)["value"]
    table = grouped.agg(mean="mean", std="std", folds="count")
    return table.reset_index()


def paired(
    scores: pd.DataFrame, model: str, other: str, outcome: str, metric: str, test_share: float
) -> Interval:
    """Return the mean difference of two models over the same folds with its 95 % interval.

    Folds of repeated cross-validation share training rows, so the variance is that of Nadeau and
    Bengio (2003, eq. 7): (1 / J + test / train) times that of the J differences.
    """
    parts = [
        scores[(scores["model"] == name) & (scores["outcome"] == outcome)].set_index(
            ["repeat", "fold"]
        )[metric]
        for name in (model, other)
    ]
    difference = (parts[0] - parts[1]).dropna().to_numpy()
    mean = float(difference.mean()) if len(difference) else float("nan")
    if len(difference) < 2:
        return Interval(mean, float("nan"), float("nan"))
    factor = 1 / len(difference) + test_share / (1 - test_share)
    half = student.ppf(0.975, len(difference) - 1) * np.sqrt(factor * difference.var(ddof=1))
    return Interval(mean, float(mean - half), float(mean + half))


def verdict(
    scores: pd.DataFrame, model: str, others: Sequence[str], outcome: str, test_share: float
) -> str:
    """Return in words whether a model is above the best of others in AUROC; empty without any."""
    means = scores[scores["outcome"] == outcome].groupby("model")["auroc"].mean()
    others = [name for name in others if np.isfinite(means.get(name, np.nan))]
    if not others or not np.isfinite(means.get(model, np.nan)):
        return ""
    best = max(others, key=lambda name: means[name])
    gap = paired(scores, model, best, outcome, "auroc", test_share)
    if gap.low > 0:
        said = "is above"
    elif gap.high < 0:
        said = "is below"
    else:
        said = "cannot be told apart from"
    return (
        f"{outcome}: {model} ({means[model]:.3f}) {said} the best baseline, {best} "
        f"({means[best]:.3f}): {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}] AUROC"
    )


def markdown(table: pd.DataFrame, outcome: str, heading: str, titles: Mapping[str, str]) -> str:
    """Return the tables of an outcome, mean ± standard deviation over folds.

    Models are rows of the first, with `METRICS` and what else is of the outcome as a whole; they
    are columns of the second, which has the metrics of parts, as in `imputation/clinical/r2`.
    """
    own = table[table["outcome"] == outcome]
    names = list(dict.fromkeys(own["metric"]))
    whole, parts = [n for n in names if "/" not in n], [n for n in names if "/" in n]
    models = list(dict.fromkeys(own["model"]))
    cell = {
        (model, metric): f"{mean:.3f} ± {std:.3f}" if np.isfinite(std) else f"{mean:.3f}"
        for model, metric, mean, std in zip(
            own["model"], own["metric"], own["mean"], own["std"], strict=True
        )
    }
    text = [heading]
    if whole:
        rows = [
            (titles.get(m, m), *(cell.get((m, n), "") for n in whole))
            for m in models
            if any((m, n) in cell for n in whole)
        ]
        text.append(table_lines(("model", *whole), rows))
    if parts:
        shown = [m for m in models if any((m, n) in cell for n in parts)]
        rows = [(n, *(cell.get((m, n), "") for m in shown)) for n in parts]
        text.append(table_lines(("measure", *(titles.get(m, m) for m in shown)), rows))
    return "\n\n".join(text)
