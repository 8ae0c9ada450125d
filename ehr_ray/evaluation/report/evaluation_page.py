"""The page of an evaluation: its verdict first, then what stands behind it."""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import isnan, nan
from typing import Final

from ehr_ray.evaluation.metrics.collapse import EmbeddingDiagnostics, LatentDiagnostics
from ehr_ray.evaluation.report.comparison import comparison
from ehr_ray.evaluation.report.content import Rejected, ReportContext, SplitSize
from ehr_ray.evaluation.report.figures import ALTERNATIVES, CAPTIONS
from ehr_ray.evaluation.report.page import (
    Block,
    Card,
    Collapsible,
    Facts,
    Image,
    Listing,
    Page,
    Paragraph,
    Preformatted,
    Tone,
    number,
    picture_card,
    table_card,
    words,
)
from ehr_ray.evaluation.report.tables import SEEN
from ehr_ray.evaluation.table import Table

_GROUPS: Final = "By subgroup"
_LEADING: Final = {"auroc": "AUROC", "mae": "MAE", "macro_auroc": "Macro AUROC"}
"""The metric a verdict opens with, by the kind of task."""


def evaluation_page(context: ReportContext, images: Mapping[str, Image]) -> Page:
    """Return the whole page; figures stand beside the tables they belong to."""
    captions = {**CAPTIONS, **context.captions}
    placed = {
        name: [picture_card(name, image, captions, ALTERNATIVES)] for name, image in images.items()
    }
    sections = dict(context.sections)
    groups = [title for title in sections if title.startswith(_GROUPS)]
    cards = (
        comparison(context),
        *(placed.pop(name, []) for name in ("roc_pr", "calibration", "embedding_map")),
        placed.pop("early_warning", []),
        table_card("By hour", sections.pop("By hour", None)),
        placed.pop("subgroups", []),
        *(table_card(title, sections.pop(title)) for title in groups),
        _collapse(context.latents, context.embeddings),
        placed.pop("kl_per_dimension", []),
        table_card("Reconstruction beside constants", context.reconstruction),
        placed.pop("reconstruction", []),
        *(table_card(title, table) for title, table in sections.items()),
        *(placed.pop(name) for name in list(placed) if name != "loss_curves"),
        placed.pop("loss_curves", []),
        _data(context),
        [Card("Notes", [Listing(context.notes)])] if context.notes else [],
        _details(context),
    )
    tone, sentences = headline(context)
    return Page(
        title=context.title,
        facts=context.run,
        tone=tone,
        verdict=sentences,
        cards=list(chain.from_iterable(cards)),
    )


def headline(context: ReportContext) -> tuple[Tone, list[str]]:
    """Return the tone and the sentences of the verdict, worst news included.

    `bad`: the model loses to a baseline or a latent collapsed. `mixed`: it cannot be told apart
    from one, or a latent is partly collapsed. `good`: it beats every baseline.
    """
    sentences = []
    for name, title in _LEADING.items():
        key = f"{context.split}/{name}"
        if isnan(context.metrics.get(key, nan)):
            continue
        what = f"for {context.task} " if context.task else ""
        text = f"{title} {_interval(context.metrics, key)} {what}in {words(context.split)} patients"
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


def _collapse(
    latents: Mapping[str, LatentDiagnostics], embeddings: Mapping[str, EmbeddingDiagnostics]
) -> list[Card]:
    blocks = []
    if latents:
        found = list(latents.values())
        rows = (
            ("Verdict", *(d.verdict for d in found)),
            ("KL, nats a row", *(number(d.kl_per_row) for d in found)),
            ("KL, nats a patient", *(number(d.kl_per_patient) for d in found)),
            ("… from the mean of the means", *(_share(d, d.kl_from_mean) for d in found)),
            (
                "… from means that differ between rows",
                *(_share(d, d.kl_from_spread) for d in found),
            ),
            ("… from posterior variances", *(_share(d, d.kl_from_variance) for d in found)),
            ("Active units", *(f"{int(d.active.sum())} of {d.active.size}" for d in found)),
            *_spread_rows([d.embedding for d in found]),
        )
        caption = (
            "KL to N(0, I) before free bits. A unit is active when its mean varies between rows "
            "by more than 0.01; RankMe is the effective number of directions in use; a cosine "
            "near 1 means that all rows look alike."
        )
        blocks.append(Table(("", *latents), rows, caption))
    if embeddings:
        rows_of = list(embeddings.values())
        blocks.append(Table(("", *embeddings), tuple(_spread_rows(rows_of))))
    half = len(latents) + len(embeddings) < 3
    return [Card("Did it collapse?", blocks, half)] if blocks else []


def _spread_rows(found: Sequence[EmbeddingDiagnostics]) -> list[tuple[str, ...]]:
    return [
        ("Standard deviation across rows", *(number(d.std) for d in found)),
        ("Mean pairwise cosine", *(number(d.cosine) for d in found)),
        ("RankMe", *(f"{d.rankme:.1f} of {d.width}" for d in found)),
        ("RankMe, centred", *(f"{d.rankme_centered:.1f} of {d.width}" for d in found)),
    ]


def _share(diagnostics: LatentDiagnostics, part: float) -> str:
    return f"{number(part)} ({part / max(diagnostics.kl_per_row, 1e-12):.0%})"


def _data(context: ReportContext) -> list[Card]:
    blocks: list[Block] = [Facts(context.cohort)] if context.cohort else []
    if context.splits:
        columns = ("Split", "Patients", "With a label", "With the outcome")
        blocks.append(Table(columns, tuple(_split_row(split) for split in context.splits)))
    blocks += _rejected(context.rejected)
    return [Card("Data", blocks)] if blocks else []


def _split_row(split: SplitSize) -> tuple[str, ...]:
    share = (split.positive or 0) / max(split.labelled, 1)
    told = split.labelled and split.positive is not None
    return (
        words(split.name),
        f"{split.patients:,}",
        f"{split.labelled:,}",
        f"{split.positive:,} ({share:.1%})" if told else "–",
    )


def _rejected(rejected: Rejected | None) -> list[Block]:
    if rejected is None:
        return []
    read = [Paragraph(f"{line[0].upper()}{line[1:]}.", small=True) for line in rejected.changes]
    if not rejected.rows:
        text = f"Of {rejected.total:,} rows none was rejected on the way in."
        return [Paragraph(text, small=True), *read]
    share = rejected.rows / max(rejected.total, 1)
    reasons = sorted(rejected.reasons.items(), key=lambda item: -item[1])
    rows = tuple((reason, f"{count:,}") for reason, count in reasons)
    text = (
        f"{rejected.rows:,} of {rejected.total:,} rows ({share:.3%}) were rejected on the way in."
    )
    table = [Table(("Reason", "Rows"), rows)] if rows else []
    return [Paragraph(text, small=True), *table, *read]


def _details(context: ReportContext) -> list[Card]:
    blocks = []
    if context.config:
        blocks.append(Collapsible("Resolved configuration", Preformatted(context.config)))
    if context.metrics:
        rows = tuple(
            (name, "undefined" if isnan(value) else f"{value:.6g}")
            for name, value in sorted(context.metrics.items())
        )
        blocks.append(Collapsible("All metrics", Table(("Metric", "Value"), rows)))
    if context.versions:
        versions = tuple((name, str(v)) for name, v in context.versions.items())
        blocks.append(Collapsible("Versions", Table(("Package", "Version"), versions)))
    return [Card("Details", blocks)] if blocks else []


def _interval(metrics: Mapping[str, float], key: str) -> str:
    value, low, high = (metrics.get(key + end, nan) for end in ("", "/low", "/high"))
    return f"{value:.3f}" if isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
