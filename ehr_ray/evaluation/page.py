"""The HTML of the report: one page of plain strings, every text from outside escaped."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isnan, nan
from typing import Final

from ehr_ray.evaluation.baselines import TITLES, title_of
from ehr_ray.evaluation.collapse import EmbeddingDiagnostics, LatentDiagnostics
from ehr_ray.evaluation.context import Rejected, ReportContext, SplitSize, Table
from ehr_ray.evaluation.figures import CAPTIONS
from ehr_ray.evaluation.page_style import CSS

COMPARED: Final = {
    "auroc": ("AUROC", True),
    "auprc": ("AUPRC", True),
    "min_se_ppv": ("min(Se, PPV)", True),
    "brier": ("Brier", False),
    "ece": ("ECE", False),
}
"""Columns of the comparison: heading and whether more is better."""

_HALF_WIDTH: Final = 520
"""Narrower figures, in CSS pixels, stand two in a row."""
_MARKS: Final = {"good": "✓", "mixed": "≈", "bad": "✗", "neutral": "i"}


@dataclass(frozen=True)
class Image:
    """A figure ready for the page."""

    png: str
    """The PNG in base64."""
    width: int
    """Width on the page in CSS pixels; the PNG itself is finer."""


def render_page(context: ReportContext, images: Mapping[str, Image]) -> str:
    """Return the whole page; figures stand beside the tables they belong to."""
    captions = {**CAPTIONS, **context.captions}
    placed = {name: _figure(name, image, captions) for name, image in images.items()}
    parts = (
        _header(context),
        _verdict(context),
        _comparison(context),
        *(placed.pop(name, "") for name in ("roc_pr", "calibration", "embedding_map")),
        _collapse(context.latents, context.embeddings),
        placed.pop("kl_per_dimension", ""),
        _section("Reconstruction beside constants", _table(context.reconstruction)),
        placed.pop("reconstruction", ""),
        *(_section(title, _table(table)) for title, table in context.sections.items()),
        *(placed.pop(name) for name in list(placed) if name != "loss_curves"),
        placed.pop("loss_curves", ""),
        _data(context),
        _notes(context.notes),
        _details(context),
    )
    body = "\n".join(part for part in parts if part)
    title = escape(context.title)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head>\n<body><main>\n{body}\n"
        "</main></body></html>\n"
    )


def headline(context: ReportContext) -> tuple[str, list[str]]:
    """Tone (`good`, `mixed`, `bad`, `neutral`) and sentences of the verdict, worst news included.

    `bad`: the model loses to a baseline or a latent collapsed. `mixed`: it cannot be told apart
    from one, or a latent is partly collapsed. `good`: it beats every baseline.
    """
    sentences = []
    key = f"{context.split}/auroc"
    if not isnan(context.metrics.get(key, nan)):
        what = f"for {context.task} " if context.task else ""
        text = f"AUROC {_interval(context.metrics, key)} {what}in {_words(context.split)} patients"
        sentences.append(f"{text}: {context.verdicts[0]}." if context.verdicts else f"{text}.")
    sentences += [f"The model {verdict}." for verdict in context.verdicts[1:]]
    for name, latent in context.latents.items():
        sentences.append(f"The latent {name} is {latent.verdict}: {latent.reason}.")
    lost = any(v.startswith("loses") for v in context.verdicts)
    tied = any(v.startswith("cannot") for v in context.verdicts)
    states = {latent.verdict for latent in context.latents.values()}
    if lost or "collapsed" in states:
        return "bad", sentences
    if tied or "partly collapsed" in states:
        return "mixed", sentences
    if context.verdicts or states:
        return "good", sentences
    return "neutral", sentences or ["No labels and no latent: nothing was judged."]


def _header(context: ReportContext) -> str:
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in context.run.items()
    )
    run = f'<dl class="facts">{cells}</dl>' if cells else ""
    return f"<header><h1>{escape(context.title)}</h1>{run}</header>"


def _verdict(context: ReportContext) -> str:
    tone, sentences = headline(context)
    first, *rest = sentences
    items = "".join(f"<li>{escape(text)}</li>" for text in rest)
    more = f"<ul>{items}</ul>" if items else ""
    return (
        f'<section class="verdict {tone}"><span class="mark" aria-hidden="true">{_MARKS[tone]}'
        f"</span><div><p>{escape(first[0].upper() + first[1:])}</p>{more}</div></section>"
    )


def _comparison(context: ReportContext) -> str:
    rows = [
        (name, f"{context.split}/" if name == "model" else f"baseline/{name}/{context.split}/")
        for name in TITLES
    ]
    metrics = context.metrics
    rows = [(n, p) for n, p in rows if any(f"{p}{m}" in metrics for m in COMPARED)]
    if not rows:
        return ""
    head = "".join(f"<th>{title} {'↑' if up else '↓'}</th>" for title, up in COMPARED.values())
    span = _span(metrics, [f"{prefix}auroc" for _, prefix in rows])
    best = {m: _best(metrics, [f"{p}{m}" for _, p in rows], COMPARED[m][1]) for m in COMPARED}
    lines = []
    for name, prefix in rows:
        cells = "".join(_cell(metrics, f"{prefix}{m}", best[m]) for m in COMPARED)
        strip = _strip(metrics, f"{prefix}auroc", span, name == "model")
        gap = _difference(metrics, f"{prefix}auroc_difference") if name != "model" else "<td>–</td>"
        kind = ' class="model"' if name == "model" else ""
        title = escape(title_of(name, metrics, context.split))
        lines.append(f"<tr{kind}><th scope=row>{title}</th><td>{strip}</td>{cells}{gap}</tr>")
    table = (
        '<div class="scroll"><table class="compare"><thead><tr><th></th><th>AUROC interval</th>'
        f"{head}<th>Δ AUROC</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    return _section("Beside the baselines", table + _comparison_caption(context))


def _comparison_caption(context: ReportContext) -> str:
    n, prevalence = (context.metrics.get(f"{context.split}/{k}", nan) for k in ("n", "prevalence"))
    rows = "" if isnan(n) else f"{n:,.0f} {_words(context.split)} patients, "
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
    return _caption(
        f"{rows}{share}All models are fitted on train; settings, calibration and thresholds come "
        f"from tuning. Small numbers are 95 % bootstrap intervals. "
        "Δ is the model minus the baseline on the same patients: an interval below 0 is a loss."
        f" Bold is the best of a column.{spread}"
    )


def _collapse(
    latents: Mapping[str, LatentDiagnostics], embeddings: Mapping[str, EmbeddingDiagnostics]
) -> str:
    if not latents and not embeddings:
        return ""
    blocks = []
    if latents:
        columns = ("", *(name for name in latents))
        found = list(latents.values())
        rows = (
            ("Verdict", *(d.verdict for d in found)),
            ("KL, nats a row", *(_number(d.kl_per_row) for d in found)),
            ("KL, nats a patient", *(_number(d.kl_per_patient) for d in found)),
            ("… from the mean of the means", *(_part(d, d.kl_from_mean) for d in found)),
            ("… from means that differ between rows", *(_part(d, d.kl_from_spread) for d in found)),
            ("… from posterior variances", *(_part(d, d.kl_from_variance) for d in found)),
            ("Active units", *(f"{int(d.active.sum())} of {d.active.size}" for d in found)),
            *_spread_rows([d.embedding for d in found]),
        )
        caption = (
            "KL to N(0, I) before free bits. A unit is active when its mean varies between rows "
            "by more than 0.01; RankMe is the effective number of directions in use; a cosine "
            "near 1 means that all rows look alike."
        )
        blocks.append(_table(Table(columns, rows, caption)))
    if embeddings:
        rows_of = list(embeddings.values())
        blocks.append(_table(Table(("", *embeddings), tuple(_spread_rows(rows_of)))))
    return _section("Did it collapse?", "".join(blocks), half=len(latents) + len(embeddings) < 3)


def _spread_rows(found: Sequence[EmbeddingDiagnostics]) -> list[tuple[str, ...]]:
    return [
        ("Standard deviation across rows", *(_number(d.std) for d in found)),
        ("Mean pairwise cosine", *(_number(d.cosine) for d in found)),
        ("RankMe", *(f"{d.rankme:.1f} of {d.width}" for d in found)),
        ("RankMe, centred", *(f"{d.rankme_centered:.1f} of {d.width}" for d in found)),
    ]


def _part(diagnostics: LatentDiagnostics, part: float) -> str:
    return f"{_number(part)} ({part / max(diagnostics.kl_per_row, 1e-12):.0%})"


def _figure(name: str, image: Image, captions: Mapping[str, tuple[str, str]]) -> str:
    title, caption = captions.get(name, (_words(name).capitalize(), ""))
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    figure = (
        f'<figure><img alt="{escape(title)}" width="{image.width}" '
        f'src="data:image/png;base64,{image.png}">{text}</figure>'
    )
    return _section(title, figure, half=image.width < _HALF_WIDTH)


def _data(context: ReportContext) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in context.cohort.items()
    )
    blocks = [f'<dl class="facts">{facts}</dl>' if facts else "", _split_table(context.splits)]
    blocks.append(_rejected(context.rejected))
    return _section("Data", "".join(blocks))


def _split_table(splits: Sequence[SplitSize]) -> str:
    if not splits:
        return ""
    rows = tuple(
        (
            _words(s.name),
            f"{s.patients:,}",
            f"{s.labelled:,}",
            f"{s.positive:,} ({s.positive / s.labelled:.1%})" if s.labelled else "–",
        )
        for s in splits
    )
    return _table(Table(("Split", "Patients", "With a label", "With the outcome"), rows))


def _rejected(rejected: Rejected | None) -> str:
    if rejected is None:
        return ""
    if not rejected.rows:
        return _caption(f"No row of {rejected.total:,} was rejected on the way in.")
    share = rejected.rows / max(rejected.total, 1)
    reasons = sorted(rejected.reasons.items(), key=lambda item: -item[1])
    rows = tuple((reason, f"{count:,}") for reason, count in reasons)
    text = (
        f"{rejected.rows:,} of {rejected.total:,} rows ({share:.3%}) were rejected on the way in."
    )
    return _caption(text) + (_table(Table(("Reason", "Rows"), rows)) if rows else "")


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return _section("Notes", f"<ul>{items}</ul>") if items else ""


def _details(context: ReportContext) -> str:
    blocks = []
    if context.config:
        blocks.append(_fold("Resolved configuration", f"<pre>{escape(context.config)}</pre>"))
    if context.metrics:
        rows = tuple(
            (name, "undefined" if isnan(value) else f"{value:.6g}")
            for name, value in sorted(context.metrics.items())
        )
        blocks.append(_fold("All metrics", _table(Table(("Metric", "Value"), rows))))
    if context.versions:
        versions = tuple((name, str(v)) for name, v in context.versions.items())
        blocks.append(_fold("Versions", _table(Table(("Package", "Version"), versions))))
    return "<section>" + "".join(blocks) + "</section>" if blocks else ""


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _section(title: str, body: str, *, half: bool = False) -> str:
    kind = ' class="half"' if half else ""
    return f"<section{kind}><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _caption(text: str) -> str:
    return f'<p class="caption">{escape(text)}</p>'


def _table(table: Table | None) -> str:
    if table is None or not table.rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    body = "".join(
        f"<tr><th scope=row>{escape(str(row[0]))}</th>"
        + "".join(f"<td>{escape(_number(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    caption = _caption(table.caption) if table.caption else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{caption}"
    )


def _number(value: str | float) -> str:
    if isinstance(value, str):
        return value
    if isnan(value):
        return "–"
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def _words(name: str) -> str:
    return name.replace("held_out", "held-out").replace("_", " ")


def _interval(metrics: Mapping[str, float], key: str) -> str:
    value, low, high = (metrics.get(key + end, nan) for end in ("", "/low", "/high"))
    return f"{value:.3f}" if isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _cell(metrics: Mapping[str, float], key: str, best: str) -> str:
    value, low, high = (metrics.get(key + end, nan) for end in ("", "/low", "/high"))
    if isnan(value):
        return "<td>–</td>"
    text = f"<b>{value:.3f}</b>" if key == best else f"{value:.3f}"
    bounds = "" if isnan(low) else f"<small>{low:.3f}–{high:.3f}</small>"
    return f"<td>{text}{bounds}</td>"


def _difference(metrics: Mapping[str, float], key: str) -> str:
    value, low, high = (metrics.get(key + end, nan) for end in ("", "/low", "/high"))
    if isnan(value):
        return "<td>–</td>"
    tone = "bad" if high < 0 else "good" if low > 0 else "mixed"
    word = {"bad": "loses", "good": "wins", "mixed": "no difference shown"}[tone]
    return (
        f'<td class="gap {tone}"><span>{value:+.3f}</span>'
        f"<small>{low:+.3f} to {high:+.3f}<br>{word}</small></td>"
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
