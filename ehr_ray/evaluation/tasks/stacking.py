"""Weights of an ensemble's parts, learned from what they said of patients none was fitted on.

Stacking (Wolpert 1992) of logits by a logistic regression whose weights are not negative (Breiman
1996), drawn to the average: of few rows it is the average. N rows, K parts.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize

from ehr_ray.evaluation.metrics.thresholds import best_f1_threshold
from ehr_ray.evaluation.tasks.probe import logit, sigmoid

Array = NDArray[np.float64]

PARTS: Final = ("network", "gbm_rich", "logistic_rich")
"""What an ensemble is made of."""
OFFSET: Final = "offset"
STACKED: Final = "stacked"
"""The row of stacked parts among the models of folds."""
_PULL: Final = 1.0
"""Of the squares of weights less 1 / K, beside the log losses of all rows."""


def fit_weights(logits: Array, label: NDArray[np.bool_]) -> Array:
    """Return K weights >= 0 and an offset, [K + 1], of the logits [N, K] of calibrated parts.

    They minimise the sum of log losses, each weight drawn to 1 / K by its square.
    """
    parts, even = logits.shape[1], 1 / logits.shape[1]
    sign = np.where(np.asarray(label, bool), 1.0, -1.0)

    def cost(weights: Array) -> tuple[float, Array]:
        margin = sign * (logits @ weights[:-1] + weights[-1])
        slope = -sign * sigmoid(-margin)
        pull = weights[:-1] - even
        gradient = np.append(logits.T @ slope + 2 * _PULL * pull, slope.sum())
        return float(np.logaddexp(0, -margin).sum() + _PULL * pull @ pull), gradient

    start = np.append(np.full(parts, even), 0.0)
    bounds = [(0.0, None)] * parts + [(None, None)]
    found = minimize(cost, start, jac=True, method="L-BFGS-B", bounds=bounds)
    weights: Array = found.x
    return weights


def stack(logits: Array, weights: Array) -> Array:
    """Return the probabilities [N] of logits [N, K] by K weights and an offset."""
    return sigmoid(logits @ weights[:-1] + weights[-1])


def stacked_folds(
    predictions: pd.DataFrame, parts: Sequence[str] = PARTS
) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """Stack what the parts said of test rows; each fold by the weights of the other ones.

    Args:
        predictions: test rows of folds, as `fold_scores` takes them, with `subject_id` and
            `prediction_time`; other models among them are left aside.
        parts: names of models.

    Returns:
        The rows of the model `stacked` of outcomes that all parts answer, whose threshold has the highest F1 on the other folds, and
        by outcome the weights by part and the `offset` that all rows give, for patients of none.
    """
    rows = ["repeat", "fold", "subject_id", "prediction_time", "label"]
    found, weights = [], {}
    for outcome, own in predictions[predictions["model"].isin(parts)].groupby("outcome"):
        if set(parts) - set(own["model"]):  # the network answers its own task alone
            continue
        wide = own.pivot_table(index=rows, columns="model", values="probability").reset_index()
        logits = logit(wide[list(parts)].to_numpy())
        label, fold = wide["label"].to_numpy(bool), wide["fold"].to_numpy()
        repeat = wide["repeat"].to_numpy()
        learned = fit_weights(logits, label)
        weights[str(outcome)] = dict(zip((*parts, OFFSET), map(float, learned), strict=True))
        for one in np.unique(repeat):
            for number in np.unique(fold):
                here = (repeat == one) & (fold == number)
                others = (repeat == one) & (fold != number)
                learned = fit_weights(logits[others], label[others])
                cut = best_f1_threshold(label[others], stack(logits[others], learned))
                found.append(
                    wide.loc[here, rows].assign(
                        model=STACKED,
                        outcome=outcome,
                        probability=stack(logits[here], learned),
                        threshold=cut,
                    )
                )
    return pd.concat([predictions[:0], *found], ignore_index=True), weights


def weights_line(weights: Mapping[str, float]) -> str:
    """Return weights as a config takes them: `{network: 0.51, ...}`."""
    return "{" + ", ".join(f"{name}: {value:.3g}" for name, value in weights.items()) + "}"
