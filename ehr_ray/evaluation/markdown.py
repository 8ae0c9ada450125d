"""Pages of Markdown, as results.md: what comes from a cohort is text, never markup."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from ehr_ray.evaluation.table import Cell, Interval, Table

_MARKUP: Final = re.compile(r"[\\`*~|]|(?<![^\W_])_|_(?![^\W_])|(?<=\])(?=[(\[:])")
"""Signs that mean something to Markdown; an underscore inside a word means nothing, and neither do
brackets unless a target follows."""
_OPENING: Final = re.compile(r"^(?=#|[-+]\s|=)|^(\d+)(?=[.)]\s)")
"""What makes a line a heading or an item of a list."""


def escaped(text: str) -> str:
    r"""Return a text as one line of Markdown that reads as the text does.

    >>> escaped("<b>|1|</b> held_out")
    '&lt;b&gt;\\|1\\|&lt;/b&gt; held_out'
    """
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(lambda found: f"\\{found[0]}", line)


def paragraph(text: str) -> str:
    """Return a text escaped as a paragraph of its own: its first sign is no markup either."""
    return _OPENING.sub(lambda found: f"{found[1] or ''}\\", escaped(text))


def bullets(texts: Sequence[str]) -> str:
    """Return a list, a text an item; empty without any."""
    return "\n".join(f"- {paragraph(text)}" for text in texts)


def table_lines(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table."""
    lines = [[escaped(name) for name in columns], ["---"] * len(columns)]
    lines += [[_cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(title: str, blocks: Sequence[str], tables: Mapping[str, Table]) -> str:
    """Return a page: a title, blocks that are Markdown already, each table under its heading."""
    parts = [f"# {escaped(title)}", *(block for block in blocks if block)]
    for heading, table in tables.items():
        parts += [f"## {escaped(heading)}", table_lines(table.columns, table.rows)]
        parts += [paragraph(table.caption)] if table.caption else []
    return "\n\n".join(parts) + "\n"


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return escaped(cell)
    if isinstance(cell, Interval):
        if np.isnan(cell.value):
            return "–"
        return f"{cell.value:.3f}" if np.isnan(cell.low) else str(cell)
    return "–" if np.isnan(cell) else f"{cell:.3f}"
