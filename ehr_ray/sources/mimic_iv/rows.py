"""A table in blocks of typed rows: of the subjects that are kept, without the bad ones."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.sources.mimic_iv.kinds import REASONS, Kind, parse
from ehr_ray.sources.mimic_iv.tables import NEVER_DONE, Table
from ehr_ray.sources.parsing.cells import Mask
from ehr_ray.sources.parsing.csv_files import csv_columns, read_csv
from ehr_ray.sources.parsing.quantities import quantities
from ehr_ray.sources.parsing.quarantine import Rejects

BLOCK_BYTES: Final = 1 << 20
_INEQUALITY: Final = r"^\s*(<=|=<|>=|=>|<|>|≤|≥|less than|greater than)\s*[0-9.,]*[0-9]\s*$"


class Roster(Protocol):
    """Who there is."""

    def look_up(self, ids: npt.NDArray[np.int64]) -> tuple[Mask, Mask]:
        """Return (whether a subject is known, whether it is kept)."""


class Block:
    """Some rows of a table.

    Attributes:
        name: the file.
        columns: each is text until it is read, then as `parse` gives it; all of one length.
        lines: of the file, from 1, int64.
        rejects: rows that were refused.
        rows_read: rows there were, the refused ones and those passed over included.
    """

    def __init__(self, name: str, text: pa.Table, lines: npt.NDArray, rejects: Rejects) -> None:
        self.name = name
        self.columns: dict[str, Any] = dict(zip(text.column_names, text.columns, strict=True))
        self.lines: npt.NDArray[np.int64] = lines
        self.rejects = rejects
        self.rows_read = len(lines) + len(rejects)

    def __len__(self) -> int:
        """Return the number of rows left."""
        return len(self.lines)

    def keep(self, mask: Mask) -> None:
        """Pass over the rows that are not marked."""
        if mask.all():
            return
        marked = pa.array(mask)
        self.lines = self.lines[mask]
        for name, values in self.columns.items():
            arrow = not isinstance(values, np.ndarray)
            self.columns[name] = values.filter(marked) if arrow else values[mask]

    def refuse(self, bad: Mask, reason: Callable[[int], str]) -> None:
        """Quarantine the rows that are marked."""
        if bad.any():
            self.rejects.rows(bad, lambda i: (self.name, int(self.lines[i])), reason)
            self.keep(~bad)

    def read(self, column: str, kind: Kind, may_be_blank: bool) -> None:
        """Give a column its type and refuse the rows where it has another.

        A quantity is never refused: `odd(column)` says which cells were no plain numbers.
        """
        text = self.columns[column]
        if kind == "quantity":
            self.columns[column], self.columns[odd(column)] = quantities(text)
            return
        self.columns[column], blank, bad = parse(text, kind)

        def reason(i: int) -> str:
            if blank[i]:
                return f"{column} is blank"
            return f"{column} {text[i].as_py()!r} is not {REASONS[kind]}"

        self.refuse(bad if may_be_blank else bad | blank, reason)


def odd(column: str) -> str:
    """Return where a block keeps the kinds of a quantity's cells (`quantities.PLAIN`, ...)."""
    return f"{column} as read"


def read_blocks(
    root: str, name: str, table: Table, roster: Roster | None = None
) -> Iterator[Block]:
    """Yield a table about 2 MB at a time, all its columns read.

    With a roster, rows of subjects that are not kept are passed over before anything but their id
    is converted, and rows of unknown ones are refused. Raises `InputError` where a column is
    missing, `pa.ArrowException` or `OSError` on a damaged file.
    """
    columns = ["subject_id", *table.columns]
    there = check_columns(root, name, columns)
    if table.status in there:
        columns.append(table.status)
    if table.words is not None and table.words[1] in there:
        columns.append(table.words[1])
    for text, lines, rejects in read_csv(
        root, name, columns, block_bytes=BLOCK_BYTES, one_line=True
    ):
        block = Block(name, text, lines, rejects)
        block.read("subject_id", "whole", may_be_blank=False)
        if roster is not None:
            _of_the_kept(block, roster)
        _inequalities(block, table)
        _carried_out(block, table)
        for column in table.columns:
            block.read(column, *table.kind(column))
        yield block


def check_columns(root: str, name: str, needed: Sequence[str]) -> list[str]:
    """Return the columns of a file; raise `InputError` where one that is needed is missing."""
    path = os.path.join(root, name)
    there = csv_columns(path)
    for column in needed:
        if column not in there:
            raise InputError(f"{path}: no column {column}; it has {', '.join(there)}")
    return there


def _of_the_kept(block: Block, roster: Roster) -> None:
    ids = block.columns["subject_id"]
    known, kept = roster.look_up(ids)
    block.keep(kept | ~known)
    ids = block.columns["subject_id"]
    known, _ = roster.look_up(ids)
    block.refuse(~known, lambda i: f"subject_id {ids[i]} is not in hosp/patients")


def _inequalities(block: Block, table: Table) -> None:
    """Give a blank quantity the inequality that its words are, such as `>100`."""
    if table.words is None or table.words[1] not in block.columns:
        return
    quantity, words = table.words
    numbers, text = block.columns[quantity], block.columns.pop(words)
    blank = pc.equal(pc.utf8_trim_whitespace(numbers), "")
    signed = pc.match_substring_regex(text, _INEQUALITY, ignore_case=True)
    block.columns[quantity] = pc.if_else(pc.and_(blank, signed), text, numbers)


def _carried_out(block: Block, table: Table) -> None:
    """Pass over rows that say nothing: without the value it is about, or never carried out."""
    if table.present is not None:
        text = block.columns[table.present]
        block.keep(pc.not_equal(text, "").to_numpy())
    if table.status in block.columns:
        block.keep(pc.not_equal(block.columns.pop(table.status), NEVER_DONE).to_numpy())
