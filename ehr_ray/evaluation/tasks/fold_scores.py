"""Results of repeated cross-validation: scores a fold, their spread, and paired differences."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from scipy.stats import t as student

from ehr_ray.evaluation.markdown import escaped, table_lines
from ehr_ray.evaluation.metrics.survival import c_index, weighted_scores
from ehr_ray.evaluation.metrics.thresholds import f1
from ehr_ray.evaluation.table import Interval

METRICS: Final = ("auroc", "auroc_ipcw", "auprc", "f1", "brier", "c_index")
KEYS: Final = ["model", "outcome", "repeat", "fold"]
LOWER: Final = frozenset({"brier"})
"""Metrics of which less is better."""


def fold_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the metrics of each model, outcome and fold.

    Rows of `predictions` are patients of a fold's test part: `KEYS`, `label` (-1 unknown), `days`
    (NaN not followed), `state`, `probability` of the positive class, `threshold`, `weight`, and
    `positive_is_event`. Concordance counts all that were followed, the rest those with a label.
    """
    rows = []
    for key, part in predictions.groupby(KEYS, sort=False):
        known = part[part["label"] >= 0]
        y, p = known["label"].to_numpy(), known["probability"].to_numpy()
        plain = weighted_scores(y, p, np.ones(len(y)))
        weighted = weighted_scores(y, p, known["weight"].to_numpy())
        sign = 1 if part["positive_is_event"].iloc[0] else -1
        risk = sign * part["probability"].to_numpy()
        found = {
            "auroc": plain["auroc"],
            "auroc_ipcw": weighted["auroc"],
            "auprc": plain["auprc"],
            "f1": f1(y, p >= known["threshold"].to_numpy()),
            "brier": plain["brier"],
            "c_index": c_index(part["days"].to_numpy(), part["state"].to_numpy(), risk),
        }
        rows.append(dict(zip(KEYS, key, strict=True)) | found | {"n": len(known)})
    return pd.DataFrame(rows)


def spread(scores: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over folds of each metric, a row a model and outcome."""
    grouped = scores.groupby(["outcome", "model"], sort=False)[list(METRICS)]
    table = grouped.agg(["mean", "std"])
    table.columns = [f"{metric}/{kind}" for metric, kind in table.columns]
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
    """Return in words whether a model is above the best of others in AUROC."""
    means = scores[scores["outcome"] == outcome].groupby("model")["auroc"].mean()
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


def markdown(table: pd.DataFrame, outcome: str, positive: str, titles: Mapping[str, str]) -> str:
    """Return the table of an outcome, mean ± standard deviation over folds."""
    rows = []
    for _, row in table[table["outcome"] == outcome].iterrows():
        cells = [f"{row[f'{m}/mean']:.3f} ± {row[f'{m}/std']:.3f}" for m in METRICS]
        rows.append((titles.get(row["model"], row["model"]), *cells))
    head = f"**{escaped(outcome)}**, {escaped(positive)}"
    return f"{head}\n\n{table_lines(('model', *METRICS), rows)}"
