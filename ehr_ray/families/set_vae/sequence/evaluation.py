"""Alarms on single sets of a stay: thresholds from tuning, measured on sets made wrong on purpose.

The family's `anomalies` table has the scores of every set (`kind` 0) and, for one set of each
patient, its scores after corruption (`kind` above 0), with the sets before it as they were. A
SetVAE scores each set by itself, against N(0, 1). A SeqSetVAE has a `values` table besides, of
what was to be expected of each value: how surprising they are is fitted on train.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ehr_ray.evaluation.metrics.bootstrap import bootstrap
from ehr_ray.evaluation.metrics.weighted import statistics
from ehr_ray.evaluation.plotting import BLUE, GREEN, GREY, INK, ORANGE
from ehr_ray.evaluation.suite import SplitPredictions, SuiteInput, SuiteResult
from ehr_ray.evaluation.table import Interval, Table
from ehr_ray.families.set_vae.sequence.surprise import SET, Expectations, expectations, surprises
from ehr_ray.storage import files

Array = NDArray[np.float64]

SCORES: Final = {
    "nelbo": "NELBO",
    "kl": "KL(q || prior)",
    "surprise": "largest surprise of a value",
}
KINDS: Final = {
    1: "resampled",
    2: "shifted",
    3: "swapped",
    4: "foreign",
    5: "shifted_measured",
    6: "swapped_measured",
}
TITLES: Final = {
    "resampled": "every value from another patient",
    "shifted": "one variable moved by 3 sd",
    "swapped": "two variables exchanged",
    "foreign": "a variable that does not belong",
    "shifted_measured": "one measured value moved by 3 sd",
    "swapped_measured": "two measured values exchanged",
}
PERCENTILES: Final = (95, 99)


def suite(given: SuiteInput) -> SuiteResult:
    """Fit thresholds on tuning, write the judged split's scores and alarms, measure detection."""
    if "anomalies" not in given.judged.tables:
        return SuiteResult()
    fits = [part for part in map(given.fit.get, ("train", "tuning")) if part is not None]
    told = [part for part in (*fits, given.judged) if "anomalies" in part.tables]
    expected, codes = None, given.vocabulary.codes
    if "values" in told[0].tables:
        recorded = told[0].tables["values"].to_pandas().query("kind == 0")
        expected = expectations(recorded, len(codes))
    judged = _frame(given.judged, expected, codes)
    fit = given.fit.get("tuning")
    tuning = judged
    if fit is not None and "anomalies" in fit.tables:
        tuning = _frame(fit, expected, codes)
    limits = thresholds(tuning)
    metrics = {f"anomaly/{name}/p{p}": v for (name, p), v in limits.items()}
    clean = with_alarms(judged[judged["kind"] == 0], limits)
    at = f"{given.split}/anomaly"
    for name, percentile in limits:
        rate = float(clean[_alarm(name, percentile)].mean())
        metrics[f"{at}/{name}/alarm_rate_p{percentile}"] = rate
    found = detection(judged, limits, seed=given.seed, num_bootstrap=given.num_bootstrap)
    metrics |= {f"{at}/{key}": value for key, value in found.items()}
    path = given.target / "anomalies" / f"{given.split}.parquet"
    _write(clean, path)
    return SuiteResult(
        metrics=metrics,
        sections={"Alarms on sets made wrong": _table(metrics, at)},
        figures={"alarms": stays(clean, limits), "detection": distributions(judged)},
        captions={
            "alarms": (
                "Stays with their alarms",
                f"Each panel is one stay: {SCORES['kl']} of each set in nats, how surprising it "
                "was (to a SeqSetVAE, after the sets before it); lines are the 95th and 99th "
                "percentile of tuning, filled markers are above the 99th.",
            ),
            "detection": (
                "What the score sees",
                "Of the same sets: scores as recorded (grey) and after corruption; the further "
                "apart, the more is noticed.",
            ),
        },
        lines=(
            f"alarms: AUROC of {' / '.join(SCORES[name] for name in scores_of(judged))} "
            + ", ".join(
                " / ".join(
                    f"{metrics[f'{at}/{name}/{kind}/auroc']:.3f}" for name in scores_of(judged)
                )
                + f" ({title})"
                for kind, title in TITLES.items()
                if f"{at}/nelbo/{kind}/auroc" in metrics
            ),
        ),
        artifacts=("anomalies",),
    )


def thresholds(tuning: pd.DataFrame) -> dict[tuple[str, int], float]:
    """Return the percentiles of each score over the recorded sets of tuning."""
    clean = tuning[tuning["kind"] == 0]
    scores = scores_of(tuning)
    return {(name, p): float(np.percentile(clean[name], p)) for name in scores for p in PERCENTILES}


def scores_of(frame: pd.DataFrame) -> list[str]:
    """Return the scores that a frame of sets has."""
    return [name for name in SCORES if name in frame]


def with_alarms(clean: pd.DataFrame, limits: Mapping[tuple[str, int], float]) -> pd.DataFrame:
    """Return the sets with `alarm_<score>_p95` and `_p99`: the score is above the threshold."""
    alarms = {_alarm(name, p): clean[name] > limit for (name, p), limit in limits.items()}
    return clean.drop(columns="kind").assign(**alarms).reset_index(drop=True)


def detection(
    judged: pd.DataFrame,
    limits: Mapping[tuple[str, int], float],
    *,
    seed: int = 0,
    num_bootstrap: int = 1000,
) -> dict[str, float]:
    """Return how well each score tells a wrong set from the same sets as recorded.

    `<score>/<kind>/auroc` with a bootstrap interval over patients (each row gives one set), and
    `<score>/<kind>/alarmed_p99`, the share of wrong sets above the threshold of tuning.
    """
    metrics: dict[str, float] = {}
    key = ["sample", "set"]
    clean = judged[judged["kind"] == 0].set_index(key)
    for number, kind in KINDS.items():
        wrong = judged[judged["kind"] == number].set_index(key)
        if not len(wrong):
            continue
        right = clean.loc[wrong.index]
        for name in scores_of(judged):
            before, after = right[name].to_numpy(), wrong[name].to_numpy()
            found = _discrimination(
                before, after, wrong["subject_id"].to_numpy(), seed, num_bootstrap
            )
            at = f"{name}/{kind}/auroc"
            metrics |= {at: found.value, f"{at}/low": found.low, f"{at}/high": found.high}
            for p in PERCENTILES:
                caught = float((after > limits[name, p]).mean())
                metrics[f"{name}/{kind}/alarmed_p{p}"] = caught
    return metrics


def stays(clean: pd.DataFrame, limits: Mapping[tuple[str, int], float], count: int = 3) -> Figure:
    """Draw the stays with the most alarms of KL(q || prior), score over hours."""
    name = "kl"
    alarms = clean.groupby("subject_id")[_alarm(name, 99)].sum()
    subjects = alarms.sort_values(ascending=False, kind="stable").index[:count]
    figure = Figure(figsize=(7.6, 1.9 * max(1, len(subjects))), layout="constrained")
    axes = figure.subplots(max(1, len(subjects)), 1, squeeze=False)[:, 0]
    for place, (axis, subject) in enumerate(zip(axes, subjects, strict=False), start=1):
        stay = clean[clean["subject_id"] == subject].sort_values("set")
        hour = stay["minute"] / 60
        axis.plot(hour, stay[name], color=BLUE, lw=1.2, marker="o", ms=3, mfc="white")
        alarmed = stay[stay[_alarm(name, 99)]]
        axis.plot(alarmed["minute"] / 60, alarmed[name], "o", color=ORANGE, ms=5)
        for p in PERCENTILES:
            axis.axhline(limits[name, p], color=GREY, lw=0.9, ls="--" if p == 95 else "-")
        axis.set_ylabel("nats", fontsize=8, color=INK)
        axis.set_title(f"stay {place}: {len(alarmed)} alarms", fontsize=9, loc="left", color=INK)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("hours since the origin", fontsize=8, color=INK)
    return figure


def distributions(judged: pd.DataFrame) -> Figure:
    """Draw the distribution of each score over the same sets, recorded and made wrong."""
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    names = scores_of(judged)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    key = ["sample", "set"]
    for axis, name in zip(axes, names, strict=True):
        wrong = judged[judged["kind"] > 0]
        clean = judged[judged["kind"] == 0].set_index(key)
        right = clean.loc[wrong[wrong["kind"] == 1].set_index(key).index][name]
        low, high = np.percentile(judged[name], [0.5, 99.5])
        edges = np.linspace(float(low), float(high) + 1e-6, 50)
        axis.hist(right, edges, color=GREY, alpha=0.6, density=True, label="as recorded")
        colours = (ORANGE, BLUE, INK, GREEN, BLUE, INK)
        lines = ("-", "--", ":", "-.", "-", "-")
        styles = zip(KINDS.items(), lines, colours, strict=True)
        for (number, kind), line, colour in styles:
            values = wrong[wrong["kind"] == number][name]
            label = TITLES[kind]
            axis.hist(
                values, edges, histtype="step", density=True, ls=line, color=colour, label=label
            )
        axis.set_xlabel(SCORES[name], fontsize=8, color=INK)
        axis.set_yticks([])
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right", "left"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return figure


def _frame(
    part: SplitPredictions, expected: Expectations | None, codes: Sequence[str]
) -> pd.DataFrame:
    """Return the scores of sets; with `expected` also `surprise` and `variable`, that of it."""
    frame = part.tables["anomalies"].to_pandas()
    if expected is not None:
        found = surprises(expected, part.tables["values"].to_pandas())
        found["variable"] = np.array(codes, object)[found.pop("code")]
        frame = frame.merge(found, on=SET, how="left").fillna({"surprise": 0.0})
    samples = part.samples.select(["subject_id", "prediction_time"]).to_pandas()
    return frame.join(samples, on="sample")


def _alarm(name: str, percentile: int) -> str:
    return f"alarm_{name}_p{percentile}"


def _discrimination(
    before: Array, after: Array, subject: NDArray[np.int64], seed: int, num_bootstrap: int
) -> Interval:
    """Share of (wrong, recorded) pairs in which the wrong set scores higher; ties are half."""
    label = np.repeat([0.0, 1.0], len(before))
    auroc = statistics(label, np.concatenate([before, after]))["auroc"]
    found = bootstrap(
        # A set is drawn with its corrupted copy.
        {"auroc": lambda weight: auroc(np.hstack([weight, weight]))},
        len(before),
        subject=subject,
        seed=seed,
        num_bootstrap=num_bootstrap,
    )
    return found["auroc"]


def _table(metrics: Mapping[str, float], at: str) -> Table:
    rows = []
    for name, title in SCORES.items():
        if f"{at}/{name}/alarm_rate_p95" not in metrics:
            continue
        for kind, what in TITLES.items():
            key = f"{at}/{name}/{kind}/auroc"
            if key in metrics:
                value, low, high = (metrics[f"{key}{end}"] for end in ("", "/low", "/high"))
                caught = (metrics[f"{at}/{name}/{kind}/alarmed_p{p}"] for p in PERCENTILES)
                shares = (f"{share:.1%}" for share in caught)
                rows.append((f"{title}: {what}", f"{value:.3f} [{low:.3f}, {high:.3f}]", *shares))
        rates = (metrics[f"{at}/{name}/alarm_rate_p{p}"] for p in PERCENTILES)
        rows.append((f"{title}: sets as recorded", "–", *(f"{rate:.1%}" for rate in rates)))
    return Table(
        ("", "AUROC", "alarmed at p95", "alarmed at p99"),
        tuple(rows),
        "One set of each patient is made wrong and compared with the same sets as recorded; "
        "thresholds are percentiles of tuning, of whose recorded sets 5 % and 1 % alarm.",
    )


def _write(clean: pd.DataFrame, path: Path) -> None:
    """Write `subject_id, prediction_time, set, minute`, the scores and the alarms, by rename."""
    first = ["subject_id", "prediction_time", "set", "minute"]
    scores = ["nelbo", "recon", "kl", *(c for c in ("surprise", "variable") if c in clean)]
    alarms = [column for column in clean.columns if column.startswith("alarm_")]
    table = pa.Table.from_pandas(clean[first + scores + alarms], preserve_index=False)
    files.write_parquet(table, path)
