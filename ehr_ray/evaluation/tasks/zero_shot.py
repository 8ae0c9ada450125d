"""Probabilities that were drawn, beside models that were fitted to the same outcome."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.binary import binary_metrics, paired_differences
from ehr_ray.evaluation.suite import SuiteResult
from ehr_ray.evaluation.table import Cell, Table
from ehr_ray.evaluation.tasks.baselines import fit_gbm, fit_linear
from ehr_ray.evaluation.tasks.downstream import Split
from ehr_ray.evaluation.tasks.verdicts import MODEL, interval, metric_prefix, outcome, signed
from ehr_ray.events.zero_shot import ZeroShot

Array = NDArray[np.float64]

RANKING: Final = ("auroc", "auprc", "brier")
PREVALENCE: Final = "prevalence"
TITLES: Final = {
    MODEL: "Futures of this model, no label seen",
    "probe": "Linear probe on its embedding, fitted to the outcome",
    "gbm": "LightGBM on simple features, fitted to the outcome",
    PREVALENCE: "Prevalence in train, for everybody",
}
_Z: Final = 1.959964
"""97.5 % quantile of the standard normal distribution."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was drawn for N rows of the judged split, and what it took."""

    occurred: NDArray[np.int64]
    """Draws in which the code occurred, [N]."""
    cut: NDArray[np.int64]
    """Draws that were cut before they ended, [N]."""
    seconds: float
    """CPU seconds of drawing, of all processes."""
    left_out: int
    """Rows without an answer: the record ends before the horizon, or nothing comes before."""


def wilson(count: NDArray[np.integer], draws: int) -> tuple[Array, Array]:
    """Return the 95 % interval of a share that `count` of `draws` estimate (Wilson 1927), [N] each.

    >>> [round(float(x), 3) for x in wilson(np.array(0), 100)]
    [0.0, 0.037]
    """
    share, z = np.asarray(count, np.float64) / draws, _Z
    middle = (share + z * z / (2 * draws)) / (1 + z * z / draws)
    spread = z * np.sqrt(share * (1 - share) / draws + z * z / (4 * draws**2))
    spread = spread / (1 + z * z / draws)
    return np.clip(middle - spread, 0, 1), np.clip(middle + spread, 0, 1)


def fitted_beside(train: Split, tuning: Split, judged: Split, *, seed: int) -> dict[str, Array]:
    """Return each judged row's probability by what was fitted to the outcome on train, [N] each.

    Without a row of train or of tuning there is nothing; trees need features.
    """
    if not len(train.label) or not len(tuning.label):
        return {}
    found = {PREVALENCE: np.full(len(judged.label), train.label.mean())}
    rows = train.embedding, train.label, tuning.embedding, tuning.label
    probe = fit_linear("probe", "embedding", *rows, seed=seed)
    found["probe"] = probe.predict(judged.embedding)
    if train.features is not None and tuning.features is not None and judged.features is not None:
        trees = fit_gbm(train.features, train.label, tuning.features, tuning.label, seed=seed)
        found["gbm"] = trees.predict(judged.features)
    return found


def zero_shot_result(
    asked: ZeroShot,
    drawn: Drawn,
    judged: Split,
    beside: Mapping[str, Array],
    split: str,
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> SuiteResult:
    """Measure drawn probabilities and those beside them on the same rows.

    Keys are `<split>/zero_shot/<metric>`, after `baseline/<name>/` for the others, with
    `<metric>_difference` (drawn less the other, paired); `n`, `positive`, `left_out`, `draws` and
    `cut` count. Intervals resample subjects, not draws.
    """
    label, n = judged.label, len(judged.label)
    draws: dict[str, Any] = {
        "subject": judged.subject_id,
        "seed": seed,
        "num_bootstrap": num_bootstrap,
    }
    at = f"{split}/zero_shot"
    counts = {"n": n, "positive": label.sum(), "left_out": drawn.left_out, "draws": asked.draws}
    metrics = {f"{at}/{key}": float(value) for key, value in counts.items()}
    metrics[f"{at}/cut"] = float(drawn.cut.sum())
    own = drawn.occurred / asked.draws
    scored = {MODEL: own, **beside} if n else {}
    for name, probability in scored.items():
        prefix = f"{metric_prefix(name, split)}/zero_shot"
        found = binary_metrics(label, probability, threshold=0.5, names=RANKING, **draws)
        metrics |= {f"{prefix}/{key}": value for key, value in found.items() if key != "n"}
        metrics[f"{prefix}/mean_probability"] = float(probability.mean())
        if name != MODEL:
            gaps = paired_differences(label, own, probability, RANKING[:2], **draws)
            for metric, gap in gaps.items():
                key = f"{prefix}/{metric}_difference"
                metrics |= {key: gap.value, f"{key}/low": gap.low, f"{key}/high": gap.high}
    sections = {_heading(asked): _table(metrics, drawn, n, split, list(scored))} if n else {}
    return SuiteResult(
        metrics=metrics, sections=sections, lines=_lines(asked, drawn, metrics, split, list(scored))
    )


def zero_shot_table(asked: ZeroShot, drawn: Drawn, judged: Split) -> pa.Table:
    """Return a row a prediction: probability with its interval by draws, and what happened."""
    low, high = wilson(drawn.occurred, asked.draws)
    return pa.table(
        {
            "subject_id": judged.subject_id,
            "prediction_time": pa.array(judged.prediction_time).cast(pa.timestamp("us")),
            "probability": drawn.occurred / asked.draws,
            "low": low,
            "high": high,
            "draws": np.full(len(low), asked.draws, np.int64),
            "cut": drawn.cut,
            "happened": judged.label,
        }
    )


def _heading(asked: ZeroShot) -> str:
    return f"Zero-shot: {asked.code} within {asked.hours:g} hours"


def _table(
    metrics: Mapping[str, float], drawn: Drawn, n: int, split: str, names: list[str]
) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name in names:
        prefix = f"{metric_prefix(name, split)}/zero_shot"
        gap = interval(metrics, f"{prefix}/auroc_difference")
        told = [interval(metrics, f"{prefix}/{metric}") for metric in RANKING]
        rows.append(
            (
                TITLES[name],
                *("undefined" if np.isnan(one.value) else one for one in told),
                metrics[f"{prefix}/mean_probability"],
                "" if np.isnan(gap.value) else signed(gap),
                outcome(gap),
                f"{drawn.seconds / n:.2g}" if name == MODEL else "",
            )
        )
    at = f"{split}/zero_shot"
    count = {key: f"{metrics[f'{at}/{key}']:,.0f}" for key in ("positive", "left_out", "draws")}
    return Table(
        columns=(
            "Model",
            "AUROC",
            "AUPRC",
            "Brier",
            "Mean probability",
            "AUROC of the futures less it",
            "The futures",
            "CPU seconds a prediction",
        ),
        rows=tuple(rows),
        caption=f"{n:,} predictions, in {count['positive']} of which it occurred; "
        f"{count['left_out']} are left out, whose record ends before the horizon or begins after "
        f"the prediction. The share of {count['draws']} futures in which it occurs, drawn event "
        "by event. Intervals are over patients; by draws they are in the table of predictions.",
    )


def _lines(
    asked: ZeroShot, drawn: Drawn, metrics: Mapping[str, float], split: str, names: list[str]
) -> tuple[str, ...]:
    at, said = f"{split}/zero_shot", f"zero-shot, {asked.code} within {asked.hours:g} h"
    n, out = int(metrics[f"{at}/n"]), f"{drawn.left_out:,} left out, whose record tells no answer"
    if not n:
        return (f"{said}: nothing to judge ({out})",)
    told = []
    for name in names:
        found = interval(metrics, f"{metric_prefix(name, split)}/zero_shot/auroc")
        if name != PREVALENCE:
            told.append("undefined" if np.isnan(found.value) else str(found))
    short = {MODEL: "futures", "probe": "probe", "gbm": "trees"}
    shown = ", ".join(
        f"{short[name]} {value}"
        for name, value in zip((n for n in names if n != PREVALENCE), told, strict=True)
    )
    mean, rate = metrics[f"{at}/mean_probability"], metrics[f"{at}/positive"] / n
    lines = [
        f"{said}, AUROC on {n:,} rows ({out}): {shown}",
        f"{said}: mean probability {mean:.3f}, it occurred in {rate:.3f}; {asked.draws} draws, "
        f"{drawn.seconds / n:.2g} CPU s a prediction",
    ]
    if cut := int(drawn.cut.sum()):
        lines.append(
            f"note: {cut:,} of {n * asked.draws:,} futures were cut at {asked.events:,} events "
            "(--max-events) and count as without, so probabilities are too low"
        )
    return tuple(lines)
