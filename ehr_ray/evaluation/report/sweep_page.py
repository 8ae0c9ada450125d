"""What a search leaves to read: trials.parquet, a table on the screen and one report.html."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import pandas as pd

from ehr_ray.evaluation.report import sweep_figures as figures
from ehr_ray.evaluation.report.html import section, table_of
from ehr_ray.evaluation.report.page import Image, figure_of
from ehr_ray.evaluation.report.style import CSS
from ehr_ray.evaluation.report.write import images_of
from ehr_ray.evaluation.table import Table
from ehr_ray.storage import files

SHOWN: Final = 10
"""Trials on the screen; the page and the file have all."""
TRIALS: Final = "trials.parquet"


def write_sweep(
    root: Path,
    frame: pd.DataFrame,
    paths: Sequence[str],
    *,
    metric: str,
    mode: str,
    curves: Mapping[int, pd.DataFrame],
    best: Mapping[str, Any] | None,
    about: Mapping[str, str],
    config: str,
) -> list[str]:
    """Write `trials.parquet`, `report.html` and `figures/`; return what a person should read.

    `frame` has a row a trial, best first (`score`, `status`, `collapsed` and the swept `paths`);
    `about` are facts of the search for the head of the page.
    """
    with files.new_file(root / TRIALS) as partial:
        _plain(frame).to_parquet(partial, index=False)
    found = figures.importance(frame, paths, mode)
    number = None if best is None else int(best["trial"])
    drawn = {"parallel": figures.parallel(frame, paths, metric, mode, number)}
    drawn["curves"] = figures.curves(curves, number, metric, mode)
    if (map_of := figures.collapse(frame, paths)) is not None:
        drawn["collapse"] = map_of
    if found is not None:
        drawn["importance"] = figures.bars(found)
    tone, said = verdict(frame, best, metric)
    html = _page(root.name, about, tone, said, frame, paths, metric, images_of(root, drawn), config)
    html = html.replace("<!--importance-->", _importance(found))
    files.write_text(root / "report.html", html)
    return [*table_lines(frame, paths, metric), *said]


def verdict(
    frame: pd.DataFrame, best: Mapping[str, Any] | None, metric: str
) -> tuple[str, list[str]]:
    """Return the tone of the page and what to say of a search, bad news included."""
    lines = []
    if best is None:
        tone = "bad"
        if frame["score"].map(math.isfinite).any():
            lines.append("every latent collapsed: no trial is the best")
        elif (frame["status"] == "failed").all():
            lines.append(f"no trial has a score: all failed, see {TRIALS}")
        else:
            lines.append(
                f"no trial has a score: {metric} is undefined on these tuning patients; give more "
                "of them, or rank by another metric (tune.rank)"
            )
    else:
        tone = "good"
        lines.append(f"best: trial {int(best['trial'])}, {metric} {best['score']:.5g}")
        alike = int(((frame["score"] == best["score"]) & ~frame["collapsed"]).sum())
        if alike > 1:
            lines.append(f"{alike} trials share that score; the first of them is taken")
            tone = "mixed"
    for status, what in (("failed", "failed"), ("stopped", "stopped early by the scheduler")):
        count = int((frame["status"] == status).sum())
        if count:
            lines.append(f"{count} of {len(frame)} trials {what}")
    dead = int(frame["collapsed"].sum())
    if dead:
        lines.append(f"{dead} of {len(frame)} latents collapsed; these rank last")
        tone = "mixed" if tone == "good" else tone
    if best is not None:
        lines.append(
            "a score chosen as the best of many is too good: judge the trial on held-out patients"
        )
    return tone, lines


def table_lines(frame: pd.DataFrame, paths: Sequence[str], metric: str) -> list[str]:
    """Return the best trials as lines of text."""
    head = ["trial", "status", metric, *map(figures.short, paths)]
    rows = [_cells(row, paths) for _, row in frame.head(SHOWN).iterrows()]
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines.insert(0, "  ".join(c.ljust(w) for c, w in zip(head, widths, strict=True)).rstrip())
    if len(frame) > SHOWN:
        lines.append(f"... and {len(frame) - SHOWN} more in {TRIALS}")
    return lines


def _cells(row: pd.Series, paths: Sequence[str]) -> list[str]:
    status = f"{row['status']}, collapsed" if row["collapsed"] else str(row["status"])
    score = f"{row['score']:.5g}" if math.isfinite(row["score"]) else "-"
    return [str(int(row["trial"])), status, score, *(_text(row[path]) for path in paths)]


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with columns of one type each: mixed choices become text."""
    kept = frame.copy()
    for name in kept.columns:
        if kept[name].dtype == object:
            kept[name] = kept[name].map(str)
    return kept


def _page(
    name: str,
    about: Mapping[str, str],
    tone: str,
    said: Sequence[str],
    frame: pd.DataFrame,
    paths: Sequence[str],
    metric: str,
    images: Mapping[str, Image],
    config: str,
) -> str:
    facts = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in about.items()
    )
    first, *rest = said
    items = "".join(f"<li>{escape(text)}</li>" for text in rest)
    marks = {"good": "✓", "mixed": "≈", "bad": "✗"}
    table = Table(
        ("Trial", "Status", metric, *map(figures.short, paths), "Steps", "Error"),
        tuple(
            (*_cells(row, paths), f"{int(row['step']):,}", str(row["error"]))
            for _, row in frame.iterrows()
        ),
        "Best first; a trial is worth its score at the report whose checkpoint was kept.",
    )
    order = ("parallel", "collapse", "importance", "curves")
    body = [
        f'<header><h1>{escape(name)}</h1><dl class="facts">{facts}</dl></header>',
        f'<section class="verdict {tone}"><span class="mark" aria-hidden="true">{marks[tone]}'
        f"</span><div><p>{escape(first[0].upper() + first[1:])}</p><ul>{items}</ul></div>"
        "</section>",
        *(figure_of(n, images[n], figures.CAPTIONS) for n in order if n in images),
        "<!--importance-->",
        section("Trials", table_of(table)),
        f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{CSS}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _importance(found: figures.Importance | None) -> str:
    if found is None:
        return section(
            "What mattered",
            f'<p class="caption">Fewer than {figures.ENOUGH} trials have a score: nothing can be '
            "said of what mattered.</p>",
        )
    order = sorted(found.share, key=lambda name: -found.share[name])
    rows = tuple((name, found.share[name], found.rank[name]) for name in order)
    trust = (
        f"A forest explains {found.explained:.0%} of the variance of trials it has not seen."
        if found.explained > 0
        else "A forest explains nothing of trials it has not seen: read no importance into this."
    )
    columns = ("Path", "share of importance", "rank correlation with the score")
    return section("What mattered, in numbers", table_of(Table(columns, rows, trust)))
