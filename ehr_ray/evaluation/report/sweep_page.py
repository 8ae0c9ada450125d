"""What a search leaves to read: trials.parquet, a table on the screen and one report.html."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from ehr_ray.evaluation.report import sweep_figures as figures
from ehr_ray.evaluation.report.page import (
    Card,
    Collapsible,
    Image,
    Page,
    Paragraph,
    Preformatted,
    Tone,
    picture_card,
    render,
)
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
    trials, images = _trials(frame, paths, metric), images_of(root, drawn)
    html = render(_page(root.name, about, (tone, said), trials, images, found, config))
    files.write_bytes(root / "report.html", html.encode())
    return [*table_lines(frame, paths, metric), *said]


def verdict(
    frame: pd.DataFrame, best: Mapping[str, Any] | None, metric: str
) -> tuple[Tone, list[str]]:
    """Return the tone of the page and what to say of a search, bad news included."""
    lines = []
    tone: Tone
    if best is None:
        tone = "bad"
        if frame["score"].map(math.isfinite).any():
            lines.append(f"no trial is fit to be the best: {_unfit(frame)}")
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
        unfit = frame["collapsed"] | frame["untrained"]
        alike = int(((frame["score"] == best["score"]) & ~unfit).sum())
        if alike > 1:
            lines.append(f"{alike} trials share that score; the first of them is taken")
            tone = "mixed"
    for status, what in (("failed", "failed"), ("stopped", "stopped early by the scheduler")):
        count = int((frame["status"] == status).sum())
        if count:
            lines.append(f"{count} of {len(frame)} trials {what}")
    for name, what in (
        ("collapsed", "latents collapsed"),
        ("untrained", "are untrained, their latent still new after so few steps"),
    ):
        if count := int(frame[name].sum()):
            lines.append(f"{count} of {len(frame)} {what}; these rank last")
            tone = "mixed" if tone == "good" else tone
    if best is not None:
        lines.append(
            "a score chosen as the best of many is too good: judge the trial on held-out patients"
        )
    return tone, lines


def _unfit(frame: pd.DataFrame) -> str:
    """Return why: `2 collapsed, 1 stopped early; train longer, or search other values`."""
    states = (
        frame["status"].mask(frame["untrained"], "untrained").mask(frame["collapsed"], "collapsed")
    )
    counts = states.replace("stopped", "stopped early").value_counts(sort=False)
    told = ", ".join(f"{n} {state}" for state, n in counts.items())
    return f"{told}; train longer, or search other values"


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
    state = next((f", {name}" for name in ("collapsed", "untrained") if row[name]), "")
    status = f"{row['status']}{state}"
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
    said: tuple[Tone, Sequence[str]],
    trials: Table,
    images: Mapping[str, Image],
    found: figures.Importance | None,
    config: str,
) -> Page:
    order = ("parallel", "collapse", "importance", "curves")
    return Page(
        title=name,
        facts=about,
        tone=said[0],
        verdict=said[1],
        cards=[
            *(
                picture_card(n, images[n], figures.CAPTIONS, figures.ALTERNATIVES)
                for n in order
                if n in images
            ),
            _importance(found),
            Card("Trials", [trials]),
            Card("Details", [Collapsible("Configuration", Preformatted(config))]),
        ],
    )


def _trials(frame: pd.DataFrame, paths: Sequence[str], metric: str) -> Table:
    return Table(
        ("Trial", "Status", metric, *map(figures.short, paths), "Steps", "Error"),
        tuple(
            (*_cells(row, paths), f"{int(row['step']):,}", str(row["error"]))
            for _, row in frame.iterrows()
        ),
        "Best first; a trial is worth its score at the report whose checkpoint was kept.",
    )


def _importance(found: figures.Importance | None) -> Card:
    if found is None:
        text = (
            f"Fewer than {figures.ENOUGH} trials have a score: nothing can be said of what "
            "mattered."
        )
        return Card("What mattered", [Paragraph(text, small=True)])
    order = sorted(found.share, key=lambda name: -found.share[name])
    rows = tuple((name, found.share[name], found.rank[name]) for name in order)
    trust = (
        f"A forest explains {found.explained:.0%} of the variance of trials it has not seen."
        if found.explained > 0
        else "A forest explains nothing of trials it has not seen: read no importance into this."
    )
    columns = ("Path", "share of importance", "rank correlation with the score")
    return Card("What mattered, in numbers", [Table(columns, rows, trust)])
