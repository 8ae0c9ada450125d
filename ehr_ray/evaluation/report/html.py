"""Pieces of HTML that the parts of the report share; every text from outside is escaped."""

from html import escape
from math import isnan

from ehr_ray.evaluation.table import Cell, Interval, Table

VERDICTS = {
    "loses": "word bad",
    "beats": "word good",
    "ties": "word mixed",
    "too few": "word mixed",
}
"""Words of a table that get a colour."""


def section(title: str, body: str, *, half: bool = False) -> str:
    """A card with a heading; nothing without a body."""
    kind = ' class="half"' if half else ""
    return f"<section{kind}><h2>{escape(title)}</h2>{body}</section>" if body else ""


def caption_of(text: str) -> str:
    """A paragraph in small grey."""
    return f'<p class="caption">{escape(text)}</p>'


def table_of(table: Table | None) -> str:
    """A table that scrolls where the page is narrow, and its caption; nothing without rows."""
    if table is None or not table.rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in table.columns)
    body = "".join(
        f"<tr><th scope=row>{escape(str(row[0]))}</th>"
        + "".join(_td(cell) for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    caption = caption_of(table.caption) if table.caption else ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{caption}"
    )


def number(value: str | float) -> str:
    """Text as it is, a number with 3 decimals or, from 100 on, with one."""
    if isinstance(value, str):
        return value
    if isnan(value):
        return "–"
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(value, 3) + 0.0:.3f}" if abs(value) < 100 else f"{value:,.1f}"


def words(name: str) -> str:
    """A name of the code as words of the page."""
    return name.replace("held_out", "held-out").replace("_", " ")


def _td(cell: Cell) -> str:
    if not isinstance(cell, Interval):
        tone = VERDICTS.get(cell) if isinstance(cell, str) else None
        kind = f' class="{tone}"' if tone else ""
        return f"<td{kind}>{escape(number(cell))}</td>"
    bounds = "" if isnan(cell.low) else f"<small>{number(cell.low)}–{number(cell.high)}</small>"
    return f"<td>{number(cell.value)}{bounds}</td>"
