"""Quarantine: what was refused, where it stood and why."""

import re
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.schema import REJECTED

_QUOTED: Final = re.compile(r"""'[^']*('|$)|"[^"]*("|$)|(?<=_id )\S+|\d{5,}""")


def masked(reason: str) -> str:
    """Return a reason for the screen or a report: what it quotes may be a patient's.

    >>> masked("RecordID '132539' in another file"), masked("subject_id 7 is not in patients")
    ('RecordID … in another file', 'subject_id … is not in patients')
    """
    return _QUOTED.sub("…", reason)


class Rejects:
    """Collects refused rows and files of one chunk, at most as many as the chunk has rows."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, int | None, str]] = []

    def __len__(self) -> int:
        """Return how many rows and files were refused."""
        return len(self._rows)

    def file(self, name: str, reason: str) -> None:
        """Refuse a whole file."""
        self._rows.append((name, None, _one_line(reason)))

    def row(self, name: str, line: int, reason: str) -> None:
        """Refuse one row; `line` counts from 1."""
        self._rows.append((name, line, _one_line(reason)))

    def rows(
        self,
        bad: npt.NDArray[np.bool_],
        where: Callable[[int], tuple[str, int]],
        reason: Callable[[int], str],
    ) -> None:
        """Refuse the rows that `bad` marks; `where` gives the file and line of a row."""
        for i in np.flatnonzero(bad):
            self.row(*where(int(i)), reason(int(i)))

    def table(self) -> pa.Table:
        """Return what was collected, sorted by file (in order of arrival) and line."""
        order = {name: i for i, name in enumerate(dict.fromkeys(r[0] for r in self._rows))}
        rows = sorted(self._rows, key=lambda r: (order[r[0]], r[1] is not None, r[1] or 0))
        files, lines, reasons = zip(*rows, strict=True) if rows else ((), (), ())
        return pa.table([files, lines, reasons], schema=REJECTED)


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."
