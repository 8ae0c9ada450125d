"""Is a reconstruction better than a constant? Values by name, hidden from the model or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehr_ray.evaluation.table import Table
from ehr_ray.events.scaling import CENTRES, UNITS, Scaling

GROUPS = {
    "all": "all values",
    "visible": "seen by the encoder",
    "hidden_live": "hidden, measured then",
    "hidden_carried": "hidden, carried",
}


@dataclass(frozen=True, eq=False)
class Tokens:
    """Reconstructed tokens, T of them; values and estimates are scaled as `data.scale` says."""

    sample: NDArray[np.int64]
    set: NDArray[np.int64]
    code: NDArray[np.int64]
    value: NDArray[np.float64]
    estimate: NDArray[np.float64]
    carried: NDArray[np.bool_]
    hidden: NDArray[np.bool_]

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> "Tokens":
        """Build from arrays by name."""
        return cls(
            sample=np.asarray(columns["sample"], np.int64),
            set=np.asarray(columns["set"], np.int64),
            code=np.asarray(columns["code"], np.int64),
            value=np.asarray(columns["value"], np.float64),
            estimate=np.asarray(columns["estimate"], np.float64),
            carried=np.asarray(columns["carried"], bool),
            hidden=np.asarray(columns["hidden"], bool),
        )

    def last_values(self) -> NDArray[np.float64]:
        """Return the value of each token's code in the last set before that has it, or NaN."""
        order = np.lexsort((self.set, self.code, self.sample))
        same = (np.diff(self.sample[order]) == 0) & (np.diff(self.code[order]) == 0)
        before = np.full(len(order), np.nan)
        before[1:][same] = self.value[order][:-1][same]
        result = np.empty(len(order))
        result[order] = before
        return result


def reconstruction_metrics(tokens: Tokens) -> dict[str, float]:
    """Return mean squared errors by group of tokens, beside those of two constants.

    `<group>/mse` of the model, `<group>/mse_mean` of the train location (0: the mean, or
    the median of robust values), `<group>/mse_last` of the code's previous value (0 where there is
    none) and `<group>/r2` = 1 - mse / mse_mean.
    """
    last = np.nan_to_num(tokens.last_values())
    metrics: dict[str, float] = {}
    for name, chosen in _groups(tokens).items():
        if not chosen.any():
            continue
        value = tokens.value[chosen]
        mse = float(np.mean((tokens.estimate[chosen] - value) ** 2))
        mean = float(np.mean(value**2))
        metrics |= {
            f"{name}/n": float(chosen.sum()),
            f"{name}/mse": mse,
            f"{name}/mse_mean": mean,
            f"{name}/mse_last": float(np.mean((last[chosen] - value) ** 2)),
            f"{name}/r2": 1 - mse / mean if mean else float("nan"),
        }
    return metrics


def reconstruction_table(metrics: Mapping[str, float], split: str, scaling: Scaling) -> Table:
    """Return the metrics (keys `<split>/reconstruction/<group>/<name>`) as the report's table."""
    centre = CENTRES[scaling]
    at = f"{split}/reconstruction"
    names = ("mse", "mse_mean", "mse_last", "r2")
    rows: tuple[tuple[str | float, ...], ...] = tuple(
        (title, *(metrics[f"{at}/{group}/{name}"] for name in names))
        for group, title in GROUPS.items()
        if f"{at}/{group}/mse" in metrics
    )
    return Table(
        columns=("values", "model", centre, "last value", "R²"),
        rows=rows,
        caption=f"Mean squared error in {UNITS[scaling]}; a model that does not beat the "
        f"{centre} has learned nothing of that group. The last value is the code's previous one, "
        "which carried values repeat exactly.",
    )


def examples(tokens: Tokens, codes: tuple[str, ...], count: int = 6) -> list[dict[str, Any]]:
    """Return sets to draw: the middle set of evenly chosen samples."""
    samples = np.unique(tokens.sample)
    chosen = samples[np.linspace(0, len(samples) - 1, min(count, len(samples))).astype(int)]
    result = []
    for number, sample in enumerate(chosen, start=1):
        mine = np.flatnonzero(tokens.sample == sample)
        sets = np.unique(tokens.set[mine])
        rows = mine[tokens.set[mine] == sets[len(sets) // 2]]
        result.append(
            {
                "title": f"patient {number}, set {sets[len(sets) // 2] + 1} of {len(sets)}",
                "tokens": [
                    {
                        "variable": codes[tokens.code[i]],
                        "value": tokens.value[i],
                        "reconstructed": tokens.estimate[i],
                        "masked": bool(tokens.hidden[i]),
                        "carried": bool(tokens.carried[i]),
                    }
                    for i in rows
                ],
            }
        )
    return result


def _groups(tokens: Tokens) -> dict[str, NDArray[np.bool_]]:
    return {
        "all": np.ones(len(tokens.value), bool),
        "visible": ~tokens.hidden,
        "hidden_live": tokens.hidden & ~tokens.carried,
        "hidden_carried": tokens.hidden & tokens.carried,
    }
