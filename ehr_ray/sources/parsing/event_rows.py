"""Typed rows of a table -> events, and blocks of rows -> chunks of bounded size."""

import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.sources.parsing.blocks import Block, odd
from ehr_ray.sources.parsing.cells import events_table
from ehr_ray.sources.parsing.csv_files import ALL_LINES, Lines, count_rows
from ehr_ray.sources.parsing.kinds import UNKNOWN
from ehr_ray.sources.parsing.parquet_files import READ_ERRORS, check_damage, rows_in
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.parsing.tables import Event
from ehr_ray.sources.source import Chunk

CHUNK_ROWS: Final = 1 << 18
"""Events of several blocks that make a chunk."""

AFTER: Final = np.timedelta64(1, "s")
"""How long after discharge a stay's billing codes stand."""


def event_rows(event: Event, block: Block, subjects: Any) -> pa.Table:
    """Return the `EVENTS` of one kind that a block gives; `subjects` are the ids of its rows."""
    columns = block.columns
    times = columns[event.time]
    if event.billed:
        times = times + AFTER
    for name in event.not_before:
        times = np.where(np.isnat(times), times, np.fmax(times, columns[name]))
    values = np.full(len(block), np.nan) if event.value is None else columns[event.value]
    rows = events_table(subjects, times, _codes(event.code, block), values)
    there = ~np.isnat(times)
    if event.needs is not None:
        there = there & _filled(columns[event.needs])
    if not there.all():
        rows = rows.filter(pa.array(there))
    if event.value is not None:
        block.rejects.odd_values(rows, columns[odd(event.value)][there])
    return rows


def _filled(column: Any) -> Any:
    if isinstance(column, np.ndarray):
        return ~np.isnan(column)
    return pc.not_equal(column, UNKNOWN).to_numpy(zero_copy_only=False)


def _codes(template: str, block: Block) -> pa.Array:
    """Return the code of each row, its `{column}`s filled in."""
    parts = []
    for part in template.split("//"):
        if part.startswith("{"):
            first, *others = [_words(block, name) for name in part[1:-1].split("|")]
            for other in others:
                first = pc.if_else(pc.equal(first, UNKNOWN), other, first)
            parts.append(first)
        else:
            parts.append(pa.repeat(pa.scalar(part), len(block)))
    return pc.binary_join_element_wise(*parts, "//")


def _words(block: Block, name: str) -> pa.Array:
    return pa.array(block.columns[name]).cast(pa.string())


def table_chunks(
    root: str,
    name: str,
    blocks: Iterator[Block],
    to_events: Callable[[Block], pa.Table],
    describe: Callable[[set[str]], pa.Table | None] = lambda _: None,
    part: Lines = ALL_LINES,
) -> Iterator[Chunk]:
    """Yield the events of the blocks of a file, or of a `part` of it, about 260,000 rows at a time.

    `describe` gets the codes there were. What is damaged, the file or its part, is refused whole.
    A file counts with its first part.
    """
    first = int(part.start == 0)
    seen: set[str] = set()
    pending: list[Chunk] = []
    size = passed_over = 0
    try:
        for block in blocks:
            events = to_events(block)
            if not len(events) + len(block.rejects):
                # A small sample leaves nothing of most blocks, of which there are thousands.
                passed_over += block.rows_read
                continue
            seen.update(pc.unique(events["code"]).to_pylist())
            pending.append(Chunk(events, **block.rejects.tables(), rows_read=block.rows_read))
            size += len(events) + len(block.rejects)
            if size >= CHUNK_ROWS:
                yield _joined(pending)
                pending, size = [], 0
    except READ_ERRORS as error:
        path = os.path.join(root, name)
        check_damage(path, error)
        damaged = Rejects()
        damaged.file(name, f"unreadable: {error}")
        groups = range(part.start, part.stop) if part.stop else None
        lost = (
            rows_in(path, groups) if name.lower().endswith(".parquet") else count_rows(path, part)
        )
        yield Chunk(rejects=damaged.table(), files_read=first, lost_rows=lost)
        return
    end = Chunk(rows_read=passed_over, files_read=first, codes=describe(seen))
    yield _joined([*pending, end])


def _joined(chunks: list[Chunk]) -> Chunk:
    """Return one chunk of several, of which the last may end the file."""
    return Chunk(
        events=pa.concat_tables([chunk.events for chunk in chunks]),
        rejects=pa.concat_tables([chunk.rejects for chunk in chunks]),
        changes=_stacked([chunk.changes for chunk in chunks]),
        inequalities=_stacked([chunk.inequalities for chunk in chunks]),
        rows_read=sum(chunk.rows_read for chunk in chunks),
        files_read=chunks[-1].files_read,
        codes=chunks[-1].codes,
    )


def _stacked(tables: list[pa.Table | None]) -> pa.Table | None:
    there = [table for table in tables if table is not None]
    return pa.concat_tables(there) if there else None
