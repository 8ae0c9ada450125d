"""Codes of one data set -> those of another: renamed, with values scaled to the other's unit.

A map is a CSV of `code,to,scale,offset`, or one that is shipped. A code is mapped where the map has
it, whole or without the `//unit` at its end; others are left as they are. The value becomes
`value * scale + offset`. A scale of 0 makes the offset the value, also of events without one, as
where `GENDER//M` is `Gender` with the value 1.
"""

import csv
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS
from ehr_ray.events.vocabulary import as_float32

SHIPPED: Final = Path(__file__).parent / "code_maps"
COLUMNS: Final = ("code", "to", "scale", "offset")
OPTION: Final = "--code-map"
NAMED: Final = 3
"""Unknown codes that a message names."""


class Entry(NamedTuple):
    """`value * scale + offset` is the value of the code `to`."""

    to: str
    scale: float
    offset: float


@dataclass(frozen=True)
class CodeMap:
    """What becomes of codes and values.

    Args:
        entries: by code.
        name: as it was given, for messages.
        own: whether it is the user's own file, all of which is meant.
        digest: of the file.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    name: str = ""
    own: bool = True
    digest: str = ""

    def key(self, code: str) -> str | None:
        """Return what the map calls a code: as it is, or without its unit; None: not there."""
        if code in self.entries:
            return code
        base = code.rpartition("//")[0]
        return base if base in self.entries else None

    def apply(self, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return (events with their new codes and values, `value_counts` of the codes mapped)."""
        codes = events["code"].combine_chunks().dictionary_encode()
        names = codes.dictionary.to_pylist()
        keys = [self.key(name) for name in names]
        at = codes.indices.to_numpy()
        mapped = np.array([key is not None for key in keys], bool)[at]
        counts = events["code"].filter(pa.array(mapped)).value_counts()
        if not mapped.any():
            return events, counts
        found = [
            Entry(name, 1.0, 0.0) if key is None else self.entries[key]
            for name, key in zip(names, keys, strict=True)
        ]
        scale, offset = (
            np.array(c)[at] for c in ([e.scale for e in found], [e.offset for e in found])
        )
        old = as_float32(events["numeric_value"])
        scaled = (old.astype(np.float64) * scale + offset).astype(np.float32)
        values = np.where(mapped, np.where(scale == 0, offset.astype(np.float32), scaled), old)
        column = {
            "code": pa.array(np.array([e.to for e in found], object)[at], pa.string()),
            "numeric_value": pa.array(values, pa.float32(), mask=np.isnan(values)),
        }
        for name, array in column.items():
            place = events.schema.get_field_index(name)
            events = events.set_column(place, EVENTS.field(name), array)
        return events, counts

    def check(self, codes: Iterable[str]) -> str | None:
        """Return a line on codes of the user's map that no event has.

        `InputError` if no event has any of them.
        """
        used = {self.key(code) for code in codes}
        unused = sorted(set(self.entries) - used)
        if len(unused) == len(self.entries):
            raise InputError(
                f"{OPTION} {self.name}: no event has any of its {len(unused)} codes, such as "
                f"{_named(unused)}; is it the map of this data?"
            )
        if not unused or not self.own:
            return None
        return (
            f"{OPTION} {self.name}: {len(unused)} of its {len(self.entries)} codes are in no "
            f"event: {_named(unused)}"
        )

    def check_targets(self, known: Iterable[str]) -> str | None:
        """Return a line on codes it maps to that a model does not know.

        `InputError` if it knows none of them.
        """
        targets = {entry.to for entry in self.entries.values()}
        unknown = sorted(targets - set(known))
        if len(unknown) == len(targets):
            raise InputError(
                f"{OPTION} {self.name}: the model knows none of the {len(targets)} codes it "
                f"maps to, such as {_named(unknown)}; map to the codes of the run's cohort"
            )
        if not unknown:
            return None
        return (
            f"{OPTION} {self.name}: the model does not know {len(unknown)} of the {len(targets)} "
            f"codes it maps to: {_named(unknown)}"
        )


def load_code_map(name: str) -> CodeMap:
    """Read a shipped map by its name, or a CSV file.

    Raises `InputError` naming the file and the line of what is wrong.
    """
    own = name not in shipped()
    path = Path(name) if own else SHIPPED / f"{name}.csv"
    try:
        content = path.read_bytes()
        rows = csv_rows(content, COLUMNS)
    except (OSError, UnicodeError, csv.Error):
        there = ", ".join(shipped())
        raise InputError(
            f"{OPTION} {name}: no readable CSV file (UTF-8), nor one of {there}"
        ) from None
    except ValueError as error:
        raise InputError(f"{OPTION} {name}: {error}") from None
    entries: dict[str, Entry] = {}
    for line, (code, entry) in enumerate(_parsed(name, rows), start=2):
        if code in entries:
            raise InputError(f"{OPTION} {name}: line {line} is about {code} again; keep one")
        entries[code] = entry
    if not entries:
        raise InputError(f"{OPTION} {name}: no row under its columns {', '.join(COLUMNS)}")
    return CodeMap(entries, name, own, hashlib.sha256(content).hexdigest())


def shipped() -> list[str]:
    """Return the names of the maps that are shipped."""
    return sorted(path.stem for path in SHIPPED.glob("*.csv"))


def csv_rows(content: bytes, columns: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a small CSV table.

    Raises ValueError where one of `columns` is not there or is there twice, and where a row has
    more cells than the header or not all of them; `csv.Error` where it is no CSV at all.
    """
    reader = csv.DictReader(content.decode("utf-8-sig").splitlines())
    names = reader.fieldnames
    if not names:
        return []
    needed = ", ".join(columns)
    for column in columns:
        if column not in names:
            raise ValueError(f"no column {column}; it needs the columns {needed}")
        if names.count(column) > 1:
            raise ValueError(f"two columns are called {column}; rename or remove one")
    rows = []
    for line, row in enumerate(reader, start=2):
        if None in row:
            raise ValueError(
                f"line {line} has more cells than the header; put one with a comma in quotes, and "
                "write 0.5, not 0,5"
            )
        if any(row[column] is None for column in columns):
            raise ValueError(f"line {line} has not all of {needed}")
        rows.append(row)
    return rows


def _parsed(name: str, rows: list[dict[str, str]]) -> Iterator[tuple[str, Entry]]:
    for line, row in enumerate(rows, start=2):
        code, to = ((row.get(column) or "").strip() for column in COLUMNS[:2])
        try:
            entry = Entry(to, number_in(row, "scale", 1.0), number_in(row, "offset", 0.0))
        except ValueError as error:
            raise InputError(f"{OPTION} {name}: line {line}: {error}") from None
        if not code or not to:
            raise InputError(f"{OPTION} {name}: line {line} has no {'to' if code else 'code'}")
        if not math.isfinite(entry.scale) or not math.isfinite(entry.offset):
            raise InputError(f"{OPTION} {name}: line {line}: scale and offset must be finite")
        yield code, entry


def number_in(row: Mapping[str, str | None], column: str, default: float | None = None) -> float:
    """Return the number in a cell of a CSV row, or `default` of an empty one.

    Raises ValueError naming the column where there is none.
    """
    text = (row.get(column) or "").strip()
    if not text and default is not None:
        return default
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"column {column}: {text!r} is no number") from None


def _named(codes: list[str]) -> str:
    return ", ".join(codes[:NAMED]) + (", ..." if len(codes) > NAMED else "")
