"""The comparison of the report: the model and its baselines, with paired differences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import isnan, nan
from typing import Final

from ehr_ray.evaluation.report.content import ReportContext
from ehr_ray.evaluation.report.html import caption_of, section, words
from ehr_ray.evaluation.report.tables import JUDGED, SHOWN, where_the_trees_win
from ehr_ray.evaluation.tasks.baselines import TITLES, title_of
from ehr_ray.evaluation.tasks.verdicts import BLEND, MODEL, interval, metric_prefix, outcome

TITLES_SHORT: Final = {"min_se_ppv": "min(Se, P+)", "event2": "Event 2"}
_TONES: Final = {
    "loses": ("bad", "loses"),
    "beats": ("good", "wins"),
    "ties": ("mixed", "not told apart"),
}
_GAINS: Final = {
    "loses": ("bad", "worse than the trees"),
    "beats": ("good", "over the trees"),
    "ties": ("mixed", "no gain shown"),
}


def comparison(context: ReportContext) -> str:
    """The table of the model and its baselines under its heading; nothing without metrics."""
    metrics, split = context.metrics, context.split
    names = [n for n in TITLES if any(f"{metric_prefix(n, split)}/{m}" in metrics for m in SHOWN)]
    if not names:
        return ""
    head = "".join(
        f"<th>{TITLES_SHORT.get(metric, title)} {'↑' if up else '↓'}</th>"
        for metric, (title, up) in SHOWN.items()
    )
    head += "".join(f"<th>Δ {SHOWN[metric][0]}</th>" for metric in JUDGED)
    table = (
        '<div class="scroll"><table class="compare"><thead><tr><th></th><th>AUROC interval</th>'
        f"{head}</tr></thead><tbody>{''.join(_rows(metrics, split, names))}</tbody></table></div>"
    )
    told = where_the_trees_win(metrics, split)
    text = f"<p>{escape(told)}</p>" if told else ""
    return section("Beside the baselines", table + text + _comparison_caption(context))


def _rows(metrics: Mapping[str, float], split: str, names: Sequence[str]) -> Iterator[str]:
    at = {name: metric_prefix(name, split) for name in names}
    span = _span(metrics, [f"{prefix}/auroc" for prefix in at.values()])
    best = {
        metric: _best(metrics, [f"{prefix}/{metric}" for prefix in at.values()], up)
        for metric, (_, up) in SHOWN.items()
    }
    for name, prefix in at.items():
        cells = "".join(_cell(metrics, prefix, m, best[m] == f"{prefix}/{m}") for m in SHOWN)
        strip = _strip(metrics, f"{prefix}/auroc", span, name == MODEL)
        gaps = "".join(_gap(metrics, name, f"{prefix}/{metric}") for metric in JUDGED)
        kind = ' class="model"' if name == MODEL else ""
        title = escape(title_of(name, metrics, split))
        yield f"<tr{kind}><th scope=row>{title}</th><td>{strip}</td>{cells}{gaps}</tr>"


def _comparison_caption(context: ReportContext) -> str:
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
    return caption_of(
        f"{rows}{share}All models are fitted on train; settings, calibration and thresholds come "
        f"from tuning. Small numbers are 95 % bootstrap intervals. "
        "Δ is the model minus the baseline on the same patients: an interval below 0 is a loss; "
        "of the average with the trees it is what it gains over the trees alone. "
        "min(Se, P+) and Event 2 (Hosmer-Lemeshow H over the range of risk) are the two scores of "
        "the PhysioNet/CinC Challenge 2012; Event 2 grows with the number of patients. "
        f"Bold is the best of a column.{spread}"
    )


def _cell(metrics: Mapping[str, float], prefix: str, metric: str, best: bool) -> str:
    key = f"{prefix}/{metric}"
    value, low, high = (metrics.get(key + end, nan) for end in ("", "/low", "/high"))
    if isnan(value):
        return "<td>–</td>"
    # Event 2 is a number of tens, all others are below 1.
    digits = 1 if metric == "event2" else 3
    text = f"<b>{value:.{digits}f}</b>" if best else f"{value:.{digits}f}"
    bounds = "" if isnan(low) else f"<small>{low:.{digits}f}–{high:.{digits}f}</small>"
    return f"<td>{text}{bounds}</td>"


def _gap(metrics: Mapping[str, float], name: str, key: str) -> str:
    """The paired difference of a row: this model minus it, or, of the average, minus the trees."""
    found = interval(metrics, f"{key}_{'gain' if name == BLEND else 'difference'}")
    word = outcome(found)
    if not word:
        return "<td>–</td>"
    tone, text = (_GAINS if name == BLEND else _TONES)[word]
    return (
        f'<td class="gap {tone}"><span>{found.value:+.3f}</span>'
        f"<small>{found.low:+.3f} to {found.high:+.3f}<br>{text}</small></td>"
    )


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


def _strip(
    metrics: Mapping[str, float], key: str, span: tuple[float, float], is_model: bool
) -> str:
    """A point with its interval, drawn to the same scale in every row of the table."""
    value, low, high = (metrics.get(key + end, nan) for end in ("", "/low", "/high"))
    if isnan(value):
        return "–"
    low, high = (value if isnan(end) else end for end in (low, high))
    x, x_low, x_high = (120 * (v - span[0]) / (span[1] - span[0]) for v in (value, low, high))
    kind = "strip model" if is_model else "strip"
    return (
        f'<svg class="{kind}" viewBox="0 0 120 18" width="120" height="18" role="img" '
        f'aria-label="{value:.3f}, from {low:.3f} to {high:.3f}">'
        f'<line x1="{x_low:.1f}" x2="{x_high:.1f}" y1="9" y2="9"/>'
        f'<circle cx="{x:.1f}" cy="9" r="4.2"/></svg>'
    )
