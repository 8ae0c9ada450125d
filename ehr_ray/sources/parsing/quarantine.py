"""Quarantine: what was refused, where it stood and why; and what was read in another way."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.schema import REJECTED
from ehr_ray.sources.parsing.cells import Times, zoned
from ehr_ray.sources.parsing.quantities import (
    DECIMAL_COMMA,
    FIRST_SIGN,
    GROUPED,
    UNREADABLE,
    Kinds,
    sign_text,
)
from ehr_ray.sources.source import CHANGES, INEQUALITIES

KINDS: Final = {
    UNREADABLE: "not a number",
    DECIMAL_COMMA: "decimal comma",
    GROUPED: "thousands mark",
    FIRST_SIGN: "inequality",
}
"""What a cell of `quantities` that is no plain number is called in `changes.parquet`."""
ZONED: Final = "time with a zone"
NAIVE: Final = "time without a zone"
"""Their `code` in a part's changes says where: a file and a column. An input has one of them."""
OPEN_VISIT: Final = "visit without an end"
OF_OPEN_VISIT: Final = "diagnosis of a visit without an end"
UNREAD: Final = "file of another ending"
"""Its `code` is the name of the file."""
UNRECORDED: Final = "not recorded"

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
        self._changes: Counter[tuple[str | None, str]] = Counter()
        self._signed: list[pa.Table] = []

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

    def change(self, what: str, count: int, code: str | None = None) -> None:
        """Count what was read otherwise than it stood."""
        if count:
            self._changes[code, what] += count

    def zones(
        self, column: pa.ChunkedArray, times: Times, place: str, *, clocks: bool = False
    ) -> None:
        """Count the times of a column that say their zone, and those that do not.

        `times` is what they were read as, `place` the file and the column. With `clocks` a date
        alone, or with midnight, counts as neither.
        """
        aware = zoned(column)
        bare = ~aware & ~np.isnat(times)
        if clocks:
            bare &= times != times.astype("datetime64[D]")
        self.change(ZONED, int(np.count_nonzero(aware)), place)
        self.change(NAIVE, int(np.count_nonzero(bare)), place)

    def odd_values(self, events: pa.Table, kinds: Kinds) -> None:
        """Count the `EVENTS` rows whose value was no plain number, and keep the inequalities."""
        odd = np.flatnonzero(kinds)
        if not len(odd):
            return
        found, kinds = events.take(pa.array(odd)), kinds[odd]
        codes = found["code"].combine_chunks().dictionary_encode()
        pairs = np.stack([codes.indices.to_numpy(), np.minimum(kinds, FIRST_SIGN)])
        for (code, kind), count in zip(*_unique_columns(pairs), strict=True):
            self.change(KINDS[int(kind)], int(count), codes.dictionary[int(code)].as_py())
        signed = kinds >= FIRST_SIGN
        if signed.any():
            bounds = found.filter(pa.array(signed))
            values = bounds["numeric_value"].to_pylist()
            text = [sign_text(*pair) for pair in zip(kinds[signed].tolist(), values, strict=True)]
            self._signed.append(bounds.append_column("text_value", pa.array(text, pa.string())))

    def tables(self) -> dict[str, pa.Table]:
        """Return what a `Chunk` says of its rows: `rejects`, `changes` and `inequalities`."""
        keys = list(self._changes)
        changes = [[code for code, _ in keys], [w for _, w in keys], list(self._changes.values())]
        return {
            "rejects": self.table(),
            "changes": pa.table(changes, schema=CHANGES),
            "inequalities": pa.concat_tables([INEQUALITIES.empty_table(), *self._signed]),
        }

    def table(self) -> pa.Table:
        """Return what was collected, sorted by file (in order of arrival) and line."""
        order = {name: i for i, name in enumerate(dict.fromkeys(r[0] for r in self._rows))}
        rows = sorted(self._rows, key=lambda r: (order[r[0]], r[1] is not None, r[1] or 0))
        files, lines, reasons = zip(*rows, strict=True) if rows else ((), (), ())
        return pa.table([files, lines, reasons], schema=REJECTED)


def _unique_columns(pairs: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    columns, counts = np.unique(pairs, axis=1, return_counts=True)
    return columns.T, counts


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."
