"""Tables of a part that are read by ranges of a key: rows in batches, and an index to them.

    <name>.rows   record batches of a stream of Arrow; rows are sorted by key, some at a time, and
                  each such batch is cut into pages of `PAGE_ROWS`
    <name>.index  int64 [3]: batches B, keys K, pages P; int64 [B]: rows of each batch;
                  int64 [P + 1]: where each page begins, and where the last one ends;
                  uint32 [K + 1, B]: at which row of each batch a key begins, and where all end

A reader touches the pages of its keys alone: it maps files of this machine, and asks a store for
the ranges of bytes that they are.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import RunError
from ehr_ray.storage import in_place
from ehr_ray.storage.paths import is_uri

BATCH_ROWS: Final = 1 << 18
"""Rows gathered before they are sorted and written: fewer batches, longer runs of a key."""
PAGE_ROWS: Final = 1 << 12
"""Rows that are read at least, some 120 KB of events, 20 KB compressed."""
HEAD_BYTES: Final = 1 << 12
"""Bytes of an index read at first: all but the beginnings of keys, of a table of 1,000,000 rows."""
MAPPED_ROWS: Final = 1 << 20
"""Rows copied at a time: pages that were touched count as memory while they are mapped."""
MAPPED_FILES: Final = 8
"""Tables mapped, or asked of a store, at a time: what the system maps around the rows of a shard is
some 8 MB of each."""
Codec = Literal["zstd"]


class KeyedWriter(AbstractContextManager["KeyedWriter"]):
    """Write a table piece by piece as `folder/name`: keys are from 0 to `num_keys` - 1.

    Pages are compressed by `codec`, if there is one: six times smaller, for what is sent.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        schema: pa.Schema,
        num_keys: int,
        codec: Codec | None = None,
    ) -> None:
        self._schema, self._num_keys = schema, num_keys
        self._index = folder / _index_name(name)
        self._rows = pa.OSFile(str(folder / _rows_name(name)), "wb")
        options = pa.ipc.IpcWriteOptions(compression=codec)
        self._stream = pa.ipc.new_stream(self._rows, schema, options=options)
        # The first batch writes the schema too, which is no part of a page.
        self._stream.write_batch(pa.RecordBatch.from_pylist([], schema))
        self._waiting: list[tuple[pa.Table, npt.NDArray[Any]]] = []
        self._edges = [self._rows.tell()]
        self._starts: list[npt.NDArray[np.uint32]] = []

    def write(self, rows: pa.Table, keys: npt.NDArray[Any]) -> None:
        """Add rows, whose keys are integers [N]; those of one key keep their order."""
        self._waiting.append((rows, keys))
        if sum(len(waiting) for waiting, _ in self._waiting) >= BATCH_ROWS:
            self._flush()

    def _flush(self) -> None:
        keys = np.concatenate([keys for _, keys in self._waiting])
        rows = pa.concat_tables([rows.cast(self._schema) for rows, _ in self._waiting])
        self._waiting = []
        if not len(rows):
            return
        order = np.argsort(keys, kind="stable")
        (batch,) = rows.combine_chunks().take(pa.array(order)).combine_chunks().to_batches()
        for start in range(0, len(batch), PAGE_ROWS):
            self._stream.write_batch(batch.slice(start, PAGE_ROWS))
            self._edges.append(self._rows.tell())
        counts = np.bincount(keys, minlength=self._num_keys)
        self._starts.append(np.r_[0, np.cumsum(counts)].astype(np.uint32))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is left and the index, unless the block failed."""
        with self._rows:
            if kind is None and self._waiting:
                self._flush()
            self._stream.close()
        if kind is None:
            rows = [int(start[-1]) for start in self._starts]
            head = [len(rows), self._num_keys, len(self._edges) - 1, *rows, *self._edges]
            starts = np.stack(self._starts, axis=1).tobytes() if self._starts else b""
            self._index.write_bytes(np.array(head, np.int64).tobytes() + starts)


class _Index(NamedTuple):
    """The head of an index, and where in its file the beginnings of keys stand.

    Args:
        keys: how many there are.
        rows: of each batch, [B].
        edges: where each page begins, and the last one ends; [P + 1].
        size: bytes of the head.
    """

    keys: int
    rows: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]
    size: int

    def first_pages(self) -> list[int]:
        """Return the first page of each batch, [B]."""
        pages = -(-self.rows // PAGE_ROWS)
        found: list[int] = (np.cumsum(pages) - pages).tolist()
        return found

    def starts(self, file: pa.NativeFile, first: int, last: int) -> npt.NDArray[np.uint32]:
        """Return at which row of each batch the keys from `first` to `last` begin, [keys, B]."""
        batches = len(self.rows)
        file.seek(self.size + 4 * batches * first)
        content = file.read_buffer(4 * batches * (last - first + 1))
        return np.frombuffer(content, np.uint32).reshape(last - first + 1, batches)


def rows_by_key(folder: str | Path, name: str, num_keys: int) -> npt.NDArray[np.int64]:
    """Return how many rows a table has of each key, [num_keys]; 0 where there is no such table."""
    with _opened_index(folder, name) as (file, index):
        if index is None or not len(index.rows):
            return np.zeros(num_keys, np.int64)
        return np.diff(index.starts(file, 0, index.keys).astype(np.int64), axis=0).sum(1)


def read_keys(
    folders: Sequence[str | Path], name: str, first: int, last: int, schema: pa.Schema
) -> pa.Table:
    """Return the rows whose key is in [first, last] of the tables of this name, in order.

    That is: folder by folder, batch by batch. A folder, or its URI, may lack the table. Of rows
    nothing else is read. Raises `RunError` where a table has an index and no rows.
    """
    copied, slices, files = [schema.empty_table()], [], 0
    for found in _each(folders, lambda folder: _pages(folder, name, first, last, schema)):
        slices += found
        files += bool(found)
        if files == MAPPED_FILES or sum(len(batch) for batch in slices) >= MAPPED_ROWS:
            copied.append(_copied(slices))
            slices, files = [], 0
    return pa.concat_tables([*copied, _copied(slices)] if slices else copied)


def _each(folders: Sequence[str | Path], function: Any) -> Iterator[list[pa.RecordBatch]]:
    """Yield what a function gives of each folder, in order; a store is asked for some at once."""
    if not any(map(is_uri, folders)):
        yield from map(function, folders)
        return
    with ThreadPoolExecutor(MAPPED_FILES) as pool:
        for start in range(0, len(folders), MAPPED_FILES):
            yield from pool.map(function, folders[start : start + MAPPED_FILES])


def _pages(
    folder: str | Path, name: str, first: int, last: int, schema: pa.Schema
) -> list[pa.RecordBatch]:
    """Return the rows of keys in [first, last] of a table, as slices of its pages."""
    with _opened_index(folder, name) as (file, index):
        if index is None or not len(index.rows):
            return []
        runs = index.starts(file, first, last + 1)[[0, -1]].T.tolist()
    there = [n for n, (start, stop) in enumerate(runs) if stop > start]
    if not there:
        return []
    pages = index.first_pages()
    slices: list[pa.RecordBatch] = []
    with _opened_rows(folder, name) as file:
        for n in there:
            start, stop = runs[n]
            slices += _rows(file, index, pages[n], start, stop, schema)
    return slices


def _rows(
    file: pa.NativeFile, index: _Index, page: int, start: int, stop: int, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield rows [start, stop) of the batch that begins with `page`, by one read of the file."""
    one, other = page + start // PAGE_ROWS, page + -(-stop // PAGE_ROWS)
    edges = index.edges[one : other + 1].tolist()
    file.seek(edges[0])
    content = file.read_buffer(edges[-1] - edges[0])
    for number, (a, b) in enumerate(itertools.pairwise(edges), start=one - page):
        batch = pa.ipc.read_record_batch(content.slice(a - edges[0], b - a), schema)
        before = number * PAGE_ROWS
        yield batch.slice(max(start - before, 0)).slice(0, stop - max(start, before))


def read_all(folder: str | Path, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield all rows of a table, without holding more than a batch."""
    with _opened_index(folder, name) as (_, index):
        if index is None:
            return
    for page, size in zip(index.first_pages(), index.rows.tolist(), strict=True):
        with _opened_rows(folder, name) as file:
            yield pa.Table.from_batches(_rows(file, index, page, 0, size, schema))


def _copied(slices: list[pa.RecordBatch]) -> pa.Table:
    """Return rows of mapped files in memory of their own, so that nothing holds the mappings."""
    table = pa.Table.from_batches(slices)
    if len(slices) > 1:
        return table.combine_chunks()  # of one slice it would be the slice
    return table.take(pa.array(np.arange(len(table))))


@contextlib.contextmanager
def _opened_index(
    folder: str | Path, name: str
) -> Iterator[tuple[pa.NativeFile, _Index] | tuple[None, None]]:
    """Open the index of a table and read its head; both are None where there is no such table."""
    with in_place.opened(folder, _index_name(name)) as file:
        if file is None:
            yield None, None
            return
        content = file.read_buffer(HEAD_BYTES)
        batches, keys, pages = np.frombuffer(content, np.int64, 3).tolist()
        size = 8 * (3 + batches + pages + 1)
        if len(content) < size:
            file.seek(0)
            content = file.read_buffer(size)
        numbers = np.frombuffer(content, np.int64, batches + pages + 1, 24)
        yield file, _Index(keys, numbers[:batches], numbers[batches:], size)


@contextlib.contextmanager
def _opened_rows(folder: str | Path, name: str) -> Iterator[pa.NativeFile]:
    """Open the rows of a table that has an index; `RunError` where they are gone."""
    with in_place.opened(folder, _rows_name(name)) as file:
        if file is None:
            raise removed(folder)
        yield file


def removed(place: str | Path) -> RunError:
    """Return the one line about what an ingest had left at a place and does not find again."""
    return RunError(
        f"{place}: another ingest into the same place has removed what this one had left there; "
        "wait for its end, then run the same command again"
    )


def _rows_name(name: str) -> str:
    return f"{name}.rows"


def _index_name(name: str) -> str:
    return f"{name}.index"
