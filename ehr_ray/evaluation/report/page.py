"""The pages as records, and the one template that turns them into HTML.

The template escapes every text; nothing here or in those who fill the records writes HTML.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isnan
from typing import Final, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ehr_ray.evaluation.table import Interval, Table

Tone = Literal["good", "mixed", "bad", "neutral"]

_HALF_WIDTH: Final = 520
"""Narrower figures, in CSS pixels, stand two in a row."""
_TONES: Final = {
    "loses": "word bad",
    "beats": "word good",
    "ties": "word mixed",
    "too few": "word mixed",
}
"""Words of a table that get a colour."""
_WORDS: Final = re.compile(r"[^\W\d]")


@dataclass(frozen=True)
class Image:
    """A figure ready for the page."""

    png: str
    """The PNG in base64."""
    width: int
    """Width on the page in CSS pixels; the PNG itself is finer."""


@dataclass(frozen=True)
class Picture:
    """A figure with what it shows in words, for those who cannot see it, and how to read it."""

    image: Image
    alternative: str
    caption: str = ""


@dataclass(frozen=True)
class Facts:
    """Names with their values, side by side."""

    items: Mapping[str, str]


@dataclass(frozen=True)
class Listing:
    """Sentences, one a bullet."""

    items: Sequence[str]


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, or, `small`, a remark."""

    text: str
    small: bool = False


@dataclass(frozen=True)
class Preformatted:
    """Text as it is, such as a configuration."""

    text: str


@dataclass(frozen=True)
class Strip:
    """An interval drawn 120 pixels wide, to the same scale in every row of a table."""

    value: str
    low: str
    high: str
    text: str
    """What is drawn, in words."""


@dataclass(frozen=True)
class Estimate:
    """A number of the comparison as written, with its bounds; `low` is empty without any."""

    value: str
    low: str
    high: str
    is_best: bool


@dataclass(frozen=True)
class Gap:
    """A paired difference as written, and what it means."""

    tone: Tone
    value: str
    low: str
    high: str
    verdict: str


@dataclass(frozen=True)
class ComparisonRow:
    """A model of the comparison; None where it has no number."""

    title: str
    is_model: bool
    strip: Strip | None
    estimates: Sequence[Estimate | None]
    gaps: Sequence[Gap | None]


@dataclass(frozen=True)
class Comparison:
    """The model and its baselines; `columns` name the estimates, then the gaps."""

    columns: Sequence[str]
    rows: Sequence[ComparisonRow]
    caption: str


@dataclass(frozen=True)
class Collapsible:
    """A block that opens on demand."""

    title: str
    body: Table | Preformatted


Block = Table | Comparison | Picture | Facts | Listing | Paragraph | Preformatted | Collapsible


@dataclass(frozen=True)
class Card:
    """A section of the page; `half` where two may stand in a row."""

    title: str
    blocks: Sequence[Block]
    half: bool = False


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page: what it is about, the verdict, worst news first, and the cards."""

    title: str
    facts: Mapping[str, str]
    tone: Tone
    verdict: Sequence[str]
    """At least one sentence; the first stands out."""
    cards: Sequence[Card]


def render(page: Page) -> str:
    """Return the page as one HTML file that needs nothing from outside."""
    return _template().render(page=page)


def picture_card(
    name: str,
    image: Image,
    captions: Mapping[str, tuple[str, str]],
    alternatives: Mapping[str, str],
) -> Card:
    """Return a figure under its title; `alternatives` say in words what figures show."""
    title, caption = captions.get(name, (words(name).capitalize(), ""))
    alternative = alternatives.get(name, f"Chart: {title}. {caption}".strip())
    return Card(title, [Picture(image, alternative, caption)], half=image.width < _HALF_WIDTH)


def table_card(title: str, table: Table | None) -> list[Card]:
    """Return the card of a table; none without rows."""
    return [Card(title, [table])] if table is not None and table.rows else []


def number(value: str | float) -> str:
    """Text as it is, a number with 3 decimals or, from 100 on, with one."""
    if isinstance(value, str):
        return value
    if isnan(value):
        return "–"
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def text_columns(table: Table) -> set[int]:
    """Return the columns after the first that hold words alone, which stand at the left."""
    return {
        i
        for i in range(1, len(table.columns))
        if all(isinstance(cell, str) and _WORDS.match(cell) for cell in (r[i] for r in table.rows))
        and any(row[i] not in _TONES for row in table.rows)
    }


def words(name: str) -> str:
    """A name of the code as words of the page."""
    return name.replace("held_out", "held-out").replace("_", " ")


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("ehr_ray.evaluation.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["tones"] = _TONES
    environment.filters["number"] = number
    environment.filters["sentence"] = lambda text: text[:1].upper() + text[1:]
    environment.filters["text_columns"] = text_columns
    environment.filters["kind"] = lambda block: type(block).__name__
    environment.tests["interval"] = lambda cell: isinstance(cell, Interval)
    return environment.get_template("page.html.jinja")
