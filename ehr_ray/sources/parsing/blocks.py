"""A table in blocks of typed rows: of the subjects that are kept, without the bad ones."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import Mask, Times, flat, refuse_rounded, spelled, zoned
from ehr_ray.sources.parsing.csv_files import (
    ALL_LINES,
    COMMON,
    Dialect,
    Lines,
    csv_columns,
    listed,
    read_csv,
    refuse_repeats,
)
from ehr_ray.sources.parsing.csv_ranges import is_large, split_lines
from ehr_ray.sources.parsing.databases import (
    BLOCK_ROWS,
    column_names,
    is_address,
    read_batches,
    table_path,
)
from ehr_ray.sources.parsing.kinds import REASONS, Kind, parse
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS, rows_in, split_row_groups
from ehr_ray.sources.parsing.quantities import DECIMAL_COMMA, UNREADABLE, quantities
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.parsing.tables import Table
from ehr_ray.sources.source import Unit
from ehr_ray.storage import files

BLOCK_BYTES: Final = 1 << 20
_IN_QUOTES: Final = r'^"([^"]|"")*"$'
_UTC: Final = r"(Z|z|[+-]00(:?00){0,2})\s*$"
_INEQUALITY: Final = r"^\s*(<=|=<|>=|=>|<|>|≤|≥|less than|greater than)\s*[0-9.,]*[0-9]\s*$"


class Roster(Protocol):
    """Who there is."""

    @property
    def table(self) -> str:
        """The table that says so."""

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

    def __init__(
        self, name: str, text: pa.Table, lines: npt.NDArray[Any], rejects: Rejects
    ) -> None:
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

        A quantity is never refused: `odd(column)` says which cells were no plain numbers. Times are
        counted by whether they say a zone; `InputError` for one that is not UTC.
        """
        text = self.columns[column]
        if kind == "quantity":
            self.columns[column], self.columns[odd(column)] = quantities(text)
            return
        self.columns[column], blank, bad = parse(text, kind)
        if kind == "time":
            self._check_zones(column, text, self.columns[column])

        def reason(i: int) -> str:
            if blank[i]:
                return f"{column} is blank"
            return f"{column} {text[i].as_py()!r} is not {REASONS[kind]}"

        self.refuse(bad if may_be_blank else bad | blank, reason)

    def _check_zones(self, column: str, text: pa.ChunkedArray, times: Times) -> None:
        place = f"{self.name}, column {column}"
        self.rejects.zones(text, times, place, clocks=True)
        away = zoned(text) & ~np.asarray(flat(pc.match_substring_regex(text, _UTC)))
        if away.any():
            raise InputError(
                f"{place}: times with an offset from UTC, beside dates of which nobody knows whose "
                "day they are; give both of UTC, or both of the local clock without a zone"
            )


def odd(column: str) -> str:
    """Return where a block keeps the kinds of a quantity's cells (`quantities.PLAIN`, ...)."""
    return f"{column} as read"


def split_table(unit: Unit, table: Table) -> list[Unit]:
    """Divide the unit of a table's file into ranges, of lines (`split_lines`) or of row groups.

    A table whose rows give several events stays whole: which of those at one time comes first
    depends on where its blocks end.
    """
    path = os.path.join(unit.root, unit.files[0])
    if len(table.events) != 1:
        return [unit]
    if path.lower().endswith(".parquet"):
        return split_row_groups(unit)
    if not is_large(path):
        return [unit]
    return split_lines(unit, _dialect(path))


def read_blocks(
    root: str,
    name: str,
    table: Table,
    roster: Roster | None = None,
    part: Lines = ALL_LINES,
) -> Iterator[Block]:
    """Yield a table, or a `part` of its file, about 2 MB at a time, all its columns read.

    With a roster, rows of subjects that are not kept are passed over before anything but their key
    is converted, and rows of unknown ones are refused. Raises `InputError` where a column is
    missing, `pa.ArrowException` or `OSError` on a damaged file.
    """
    columns = columns_there(root, name, table)
    for text, lines, rejects in _pieces(root, name, columns, part, table):
        for column in table.columns:
            if column not in columns.values():
                text = text.append_column(column, pa.array([""] * len(text), pa.string()))
        block = Block(name, text, lines, rejects)
        block.read(table.key, "whole", may_be_blank=False)
        if roster is not None:
            _of_the_kept(block, roster, table.key)
        _inequalities(block, table)
        _carried_out(block, table)
        for column in table.columns:
            block.read(column, *table.kind(column))
        if table.numeric is not None:
            block.keep(~np.isin(block.columns[odd(table.numeric)], (UNREADABLE, DECIMAL_COMMA)))
        yield block


def read_whole(
    root: str, name: str, table: Table, columns: Mapping[str, Any], roster: Roster | None = None
) -> list[Block]:
    """Return some columns of a whole table; a damaged file is an `InputError`."""
    blocks = []
    try:
        for block in read_blocks(root, name, table, roster):
            for column in set(block.columns) - set(columns):
                del block.columns[column]
            blocks.append(block)
    except READ_ERRORS as error:
        path = table_path(root, name)
        raise InputError(f"{path}: unreadable ({error}); fetch it again") from None
    return blocks


def joined(blocks: Sequence[Block], columns: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the blocks' columns end to end; `columns` says their types."""
    return {
        name: np.concatenate([np.empty(0, kind), *(np.asarray(b.columns[name]) for b in blocks)])
        for name, kind in columns.items()
    }


def columns_there(root: str, name: str, table: Table) -> dict[str, str]:
    """Return the columns that are read of a table, their name -> ours.

    Raises `InputError` where one is missing that the table must have.
    """
    needed = [name for name in table.columns if name not in table.optional]
    there = check_columns(root, name, [table.key, *needed])
    columns = [table.key, *table.columns]
    columns += [table.never_done[0]] if table.never_done is not None else []
    columns += [table.words[1]] if table.words is not None else []
    return {there[column.lower()]: column for column in columns if column.lower() in there}


def check_columns(root: str, name: str, needed: Sequence[str]) -> dict[str, str]:
    """Return the columns of a file by their name in small letters, which are not told apart.

    Raises `InputError` where one that is needed is missing.
    """
    path = table_path(root, name)
    if is_address(root):
        names = column_names(root, name)
    elif name.lower().endswith(".parquet"):
        with files.reads(path, "fetch it again"):
            names = files.open_parquet(path).schema_arrow.names
    else:
        names = csv_columns(path, _dialect(path))
    refuse_repeats(path, [column.lower() for column in names])
    there = {column.lower(): column for column in names}
    for column in needed:
        if column.lower() not in there:
            raise InputError(f"{path}: no column {column}; it has {listed(names)}")
    return there


def _dialect(path: str, loose_quotes: bool = False) -> Dialect:
    """Return how a CSV file is written: by tabs where its header has them and no comma.

    So are vocabularies of OMOP, whatever their names end in. What has its header in quotes writes
    all quotes by the rule.
    """
    names = csv_columns(path)
    if len(names) != 1 or "\t" not in names[0]:
        return COMMON
    return Dialect("\t", quoted='"' in names[0] or not loose_quotes)


def _unquoted(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return cells without the quotes that they begin and end with, if these are by the rule."""
    by_rule = pc.match_substring_regex(column, _IN_QUOTES)
    inner = pc.replace_substring(pc.utf8_slice_codeunits(column, 1, -1), '""', '"')
    return pc.if_else(by_rule, inner, column)


def _pieces(
    root: str, name: str, columns: dict[str, str], part: Lines, table: Table
) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64], Rejects]]:
    """Yield (columns as strings, line of each row, malformed rows); `columns` are theirs -> ours.

    A row of a Parquet file or a database is as many lines down as in a CSV file of the same rows.
    Raises `InputError` for identifiers that a float rounded.
    """
    if not (is_address(root) or name.lower().endswith(".parquet")):
        dialect = _dialect(os.path.join(root, name), table.loose_quotes)
        for text, lines, rejects in read_csv(
            root,
            name,
            list(columns),
            block_bytes=BLOCK_BYTES,
            dialect=dialect,
            one_line=True,
            part=part,
        ):
            text = text.rename_columns([columns[c] for c in text.column_names])
            if not dialect.quoted:
                text = pa.table({c: _unquoted(text[c]) for c in text.column_names})
            yield text, lines, rejects
        return
    line = 2
    if part.start:
        line += rows_in(os.path.join(root, name), range(part.start))
    ids = [table.key, *(c for c in table.columns if table.kind(c)[0] in ("whole", "concept"))]
    for batch in _batches(root, name, list(columns), part):
        for theirs, ours in columns.items():
            if ours in ids:
                refuse_rounded(flat(batch[theirs]), f"cells of {name}, column {theirs},")
        text = pa.table(
            {
                ours: spelled(flat(batch[theirs]), theirs).fill_null("")
                for theirs, ours in columns.items()
            }
        )
        yield text, np.arange(line, line + len(text)), Rejects()
        line += len(text)


def _batches(root: str, name: str, columns: list[str], part: Lines) -> Iterator[pa.RecordBatch]:
    if is_address(root):
        return read_batches(root, name, columns)
    file = files.open_parquet(os.path.join(root, name))
    groups = range(part.start, part.stop or file.metadata.num_row_groups)
    batches: Iterator[pa.RecordBatch] = file.iter_batches(
        BLOCK_ROWS, row_groups=[*groups], columns=columns
    )
    return batches


def _of_the_kept(block: Block, roster: Roster, key: str) -> None:
    ids = block.columns[key]
    known, kept = roster.look_up(ids)
    block.keep(kept | ~known)
    ids = block.columns[key]
    known, _ = roster.look_up(ids)
    block.refuse(~known, lambda i: f"{key} {ids[i]} is not in {roster.table}")


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
    if table.never_done is not None and table.never_done[0] in block.columns:
        column, never = table.never_done
        block.keep(pc.not_equal(block.columns.pop(column), never).to_numpy())
