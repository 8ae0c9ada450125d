"""The comparison of the report: the model and its baselines, with paired differences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isnan, nan
from typing import Final

from ehr_ray.evaluation.report.content import ReportContext
from ehr_ray.evaluation.report.page import (
    Block,
    Card,
    Comparison,
    ComparisonRow,
    Estimate,
    Gap,
    Paragraph,
    Strip,
    Tone,
    words,
)
from ehr_ray.evaluation.report.tables import JUDGED, SHOWN, where_the_trees_win
from ehr_ray.evaluation.tasks.baselines import FEATURES, TITLES, title_of
from ehr_ray.evaluation.tasks.verdicts import BLEND, MODEL, interval, metric_prefix, outcome

TITLES_SHORT: Final = {"min_se_ppv": "min(Se, P+)", "event2": "Event 2"}
_TONES: Final[Mapping[str, tuple[Tone, str]]] = {
    "loses": ("bad", "loses"),
    "beats": ("good", "wins"),
    "ties": ("mixed", "not told apart"),
}
_GAINS: Final[Mapping[str, tuple[Tone, str]]] = {
    "loses": ("bad", "worse than the trees"),
    "beats": ("good", "over the trees"),
    "ties": ("mixed", "no gain shown"),
}


def comparison(context: ReportContext) -> list[Card]:
    """Return the card of the model beside its baselines; none without metrics."""
    metrics, split = context.metrics, context.split
    names = [n for n in TITLES if any(f"{metric_prefix(n, split)}/{m}" in metrics for m in SHOWN)]
    if not names:
        return []
    columns = [
        f"{TITLES_SHORT.get(metric, title)}\N{NO-BREAK SPACE}{'↑' if up else '↓'}"
        for metric, (title, up) in SHOWN.items()
    ]
    columns += [f"Δ {SHOWN[metric][0]}" for metric in JUDGED]
    rows = list(_rows(metrics, split, names))
    blocks: list[Block] = [Comparison(columns, rows, _caption(context))]
    told = where_the_trees_win(metrics, split)
    if told:
        blocks.append(Paragraph(told))
    return [Card("Beside the baselines", blocks)]


def _rows(
    metrics: Mapping[str, float], split: str, names: Sequence[str]
) -> Iterator[ComparisonRow]:
    at = {name: metric_prefix(name, split) for name in names}
    span = _span(metrics, [f"{prefix}/auroc" for prefix in at.values()])
    best = {
        metric: _best(metrics, [f"{prefix}/{metric}" for prefix in at.values()], up)
        for metric, (_, up) in SHOWN.items()
    }
    for name, prefix in at.items():
        yield ComparisonRow(
            title=title_of(name, metrics, split),
            is_model=name == MODEL,
            strip=_strip(metrics, f"{prefix}/auroc", span),
            estimates=[_estimate(metrics, prefix, m, best[m] == f"{prefix}/{m}") for m in SHOWN],
            gaps=[_gap(metrics, name, f"{prefix}/{metric}") for metric in JUDGED],
        )


def _caption(context: ReportContext) -> str:
    n, prevalence = (context.metrics.get(f"{context.split}/{k}", nan) for k in ("n", "prevalence"))
    rows = "" if isnan(n) else f"{n:,.0f} {words(context.split)} patients, "
    share = "" if isnan(prevalence) else f"{prevalence:.1%} with the outcome. "
    seeds = [
        context.metrics.get(f"baseline/gbm/{context.split}/auroc/seed_{end}", nan)
        for end in ("min", "max")
    ]
    spread = (
        ""
        if any(map(isnan, seeds))
        else f" Single seeds of the trees: {seeds[0]:.3f}–{seeds[1]:.3f}."
    )
    return (
        f"{rows}{share}All models are fitted on train, the trees' settings chosen by its folds; "
        f"other settings, calibration and thresholds come from tuning. {FEATURES} "
        "Small numbers are 95 % intervals over resampled patients. "
        "Δ is the model minus the baseline on the same patients: an interval below 0 is a loss; "
        "of the average with the trees it is what it gains over the trees alone. "
        "min(Se, P+) and Event 2 (Hosmer-Lemeshow H over the range of risk) are the two scores of "
        "the PhysioNet/CinC Challenge 2012; Event 2 grows with the number of patients. "
        f"Bold is the best of a column.{spread}"
    )


def _estimate(
    metrics: Mapping[str, float], prefix: str, metric: str, is_best: bool
) -> Estimate | None:
    found = interval(metrics, f"{prefix}/{metric}")
    if isnan(found.value):
        return None
    # Event 2 is a number of tens, all others are below 1.
    digits = 1 if metric == "event2" else 3
    low, high = ("" if isnan(found.low) else f"{end:.{digits}f}" for end in (found.low, found.high))
    return Estimate(f"{found.value:.{digits}f}", low, high, is_best)


def _gap(metrics: Mapping[str, float], name: str, key: str) -> Gap | None:
    """The paired difference of a row: this model minus it, or, of the average, minus the trees."""
    found = interval(metrics, f"{key}_{'gain' if name == BLEND else 'difference'}")
    word = outcome(found)
    if not word:
        return None
    tone, text = (_GAINS if name == BLEND else _TONES)[word]
    value, low, high = (f"{number:+.3f}" for number in (found.value, found.low, found.high))
    return Gap(tone, value, low, high, text)


def _best(metrics: Mapping[str, float], keys: Iterable[str], more_is_better: bool) -> str:
    known = [key for key in keys if not isnan(metrics.get(key, nan))]
    if not known:
        return ""
    return (max if more_is_better else min)(known, key=lambda key: metrics[key])


def _span(metrics: Mapping[str, float], keys: Sequence[str]) -> tuple[float, float]:
    ends = [metrics.get(key + end, nan) for key in keys for end in ("", "/low", "/high")]
    known = [value for value in ends if not isnan(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    margin = max(0.02, 0.06 * (high - low))
    return low - margin, high + margin


def _strip(metrics: Mapping[str, float], key: str, span: tuple[float, float]) -> Strip | None:
    found = interval(metrics, key)
    if isnan(found.value):
        return None
    ends = [found.value if isnan(end) else end for end in (found.low, found.high)]
    value, low, high = (
        f"{120 * (v - span[0]) / (span[1] - span[0]):.1f}" for v in (found.value, *ends)
    )
    return Strip(value, low, high, f"{found.value:.3f}, from {ends[0]:.3f} to {ends[1]:.3f}")
