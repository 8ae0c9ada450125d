"""The HTML of the report: one page of plain strings, every text from outside escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isnan, nan
from typing import Final

from ehr_ray.evaluation.metrics.collapse import EmbeddingDiagnostics, LatentDiagnostics
from ehr_ray.evaluation.report.comparison import comparison
from ehr_ray.evaluation.report.content import Rejected, ReportContext, SplitSize
from ehr_ray.evaluation.report.figures import CAPTIONS
from ehr_ray.evaluation.report.html import caption_of, number, section, table_of, words
from ehr_ray.evaluation.report.style import CSS
from ehr_ray.evaluation.report.tables import SEEN
from ehr_ray.evaluation.table import Table

_HALF_WIDTH: Final = 520
"""Narrower figures, in CSS pixels, stand two in a row."""
_GROUPS: Final = "By subgroup"
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
    placed = {name: figure_of(name, image, captions) for name, image in images.items()}
    sections = dict(context.sections)
    parts = (
        _header(context),
        _verdict(context),
        comparison(context),
        *(placed.pop(name, "") for name in ("roc_pr", "calibration", "embedding_map")),
        placed.pop("early_warning", ""),
        section("By hour", table_of(sections.pop("By hour", None))),
        placed.pop("subgroups", ""),
        *(section(t, table_of(sections.pop(t))) for t in list(sections) if t.startswith(_GROUPS)),
        _collapse(context.latents, context.embeddings),
        placed.pop("kl_per_dimension", ""),
        section("Reconstruction beside constants", table_of(context.reconstruction)),
        placed.pop("reconstruction", ""),
        *(section(title, table_of(table)) for title, table in sections.items()),
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
        text = f"AUROC {_interval(context.metrics, key)} {what}in {words(context.split)} patients"
        sentences.append(f"{text}: {context.verdicts[0]}." if context.verdicts else f"{text}.")
    if context.split in SEEN:
        sentences.append(SEEN[context.split])
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
            ("KL, nats a row", *(number(d.kl_per_row) for d in found)),
            ("KL, nats a patient", *(number(d.kl_per_patient) for d in found)),
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
        blocks.append(table_of(Table(columns, rows, caption)))
    if embeddings:
        rows_of = list(embeddings.values())
        blocks.append(table_of(Table(("", *embeddings), tuple(_spread_rows(rows_of)))))
    return section("Did it collapse?", "".join(blocks), half=len(latents) + len(embeddings) < 3)


def _spread_rows(found: Sequence[EmbeddingDiagnostics]) -> list[tuple[str, ...]]:
    return [
        ("Standard deviation across rows", *(number(d.std) for d in found)),
        ("Mean pairwise cosine", *(number(d.cosine) for d in found)),
        ("RankMe", *(f"{d.rankme:.1f} of {d.width}" for d in found)),
        ("RankMe, centred", *(f"{d.rankme_centered:.1f} of {d.width}" for d in found)),
    ]


def _part(diagnostics: LatentDiagnostics, part: float) -> str:
    return f"{number(part)} ({part / max(diagnostics.kl_per_row, 1e-12):.0%})"


def figure_of(name: str, image: Image, captions: Mapping[str, tuple[str, str]]) -> str:
    """A card with a figure, its title and its caption."""
    title, caption = captions.get(name, (words(name).capitalize(), ""))
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    figure = (
        f'<figure><img alt="{escape(title)}" width="{image.width}" '
        f'src="data:image/png;base64,{image.png}">{text}</figure>'
    )
    return section(title, figure, half=image.width < _HALF_WIDTH)


def _data(context: ReportContext) -> str:
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in context.cohort.items()
    )
    blocks = [f'<dl class="facts">{facts}</dl>' if facts else "", _split_table(context.splits)]
    blocks.append(_rejected(context.rejected))
    return section("Data", "".join(blocks))


def _split_table(splits: Sequence[SplitSize]) -> str:
    if not splits:
        return ""
    rows = tuple(
        (
            words(s.name),
            f"{s.patients:,}",
            f"{s.labelled:,}",
            f"{s.positive:,} ({s.positive / s.labelled:.1%})" if s.labelled else "–",
        )
        for s in splits
    )
    return table_of(Table(("Split", "Patients", "With a label", "With the outcome"), rows))


def _rejected(rejected: Rejected | None) -> str:
    if rejected is None:
        return ""
    if not rejected.rows:
        return caption_of(f"No row of {rejected.total:,} was rejected on the way in.")
    share = rejected.rows / max(rejected.total, 1)
    reasons = sorted(rejected.reasons.items(), key=lambda item: -item[1])
    rows = tuple((reason, f"{count:,}") for reason, count in reasons)
    text = (
        f"{rejected.rows:,} of {rejected.total:,} rows ({share:.3%}) were rejected on the way in."
    )
    return caption_of(text) + (table_of(Table(("Reason", "Rows"), rows)) if rows else "")


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return section("Notes", f"<ul>{items}</ul>") if items else ""


def _details(context: ReportContext) -> str:
    blocks = []
    if context.config:
        blocks.append(
            _collapsible("Resolved configuration", f"<pre>{escape(context.config)}</pre>")
        )
    if context.metrics:
        rows = tuple(
            (name, "undefined" if isnan(value) else f"{value:.6g}")
            for name, value in sorted(context.metrics.items())
        )
        blocks.append(_collapsible("All metrics", table_of(Table(("Metric", "Value"), rows))))
    if context.versions:
        versions = tuple((name, str(v)) for name, v in context.versions.items())
        blocks.append(_collapsible("Versions", table_of(Table(("Package", "Version"), versions))))
    return "<section>" + "".join(blocks) + "</section>" if blocks else ""


def _collapsible(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _interval(metrics: Mapping[str, float], key: str) -> str:
    value, low, high = (metrics.get(key + end, nan) for end in ("", "/low", "/high"))
    return f"{value:.3f}" if isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
