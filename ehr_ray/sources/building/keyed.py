"""Tables of a part that are read by ranges of a key: rows in batches, and an index to them.

    <name>.rows   record batches of a stream of Arrow, each sorted by key
    <name>.index  int64 [2]: batches B and keys K; int64 [B, 2]: where each message begins and ends;
                  uint32 [B, K + 1]: at which row of its batch each key begins, and where all end

A reader maps both, and touches the rows of its keys alone.
"""

import mmap
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BATCH_ROWS: Final = 1 << 18
"""Rows gathered before they are sorted and written: fewer batches, longer runs of a key."""
MAPPED_ROWS: Final = 1 << 20
"""Rows copied at a time: pages that were touched count as memory while they are mapped."""
MAPPED_FILES: Final = 8
"""Tables mapped at a time: what the system maps around the rows of a shard is some 8 MB of each."""


class KeyedWriter(AbstractContextManager["KeyedWriter"]):
    """Write a table piece by piece as `folder/name`: keys are from 0 to `num_keys` - 1."""

    def __init__(self, folder: Path, name: str, schema: pa.Schema, num_keys: int) -> None:
        self._schema, self._num_keys = schema, num_keys
        self._index = _index_file(folder, name)
        self._rows = pa.OSFile(str(_rows_file(folder, name)), "wb")
        self._stream = pa.ipc.new_stream(self._rows, schema)
        # The first batch writes the schema too, which is no part of a place.
        self._stream.write_batch(pa.RecordBatch.from_pylist([], schema))
        self._waiting: list[tuple[pa.Table, npt.NDArray]] = []
        self._places: list[tuple[int, int]] = []
        self._starts: list[npt.NDArray[np.uint32]] = []

    def write(self, rows: pa.Table, keys: npt.NDArray) -> None:
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
        start = self._rows.tell()
        self._stream.write_batch(batch)
        self._places.append((start, self._rows.tell()))
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
            head = [(len(self._places), self._num_keys), *self._places]
            starts = [start.tobytes() for start in self._starts]
            self._index.write_bytes(b"".join([np.array(head, np.int64).tobytes(), *starts]))


class _Index(NamedTuple):
    places: npt.NDArray[np.int64]
    starts: npt.NDArray[np.uint32]


def rows_by_key(folder: Path, name: str, num_keys: int) -> npt.NDArray[np.int64]:
    """Return how many rows a table has of each key, [num_keys]; 0 where there is no such table."""
    index = _read_index(folder, name)
    if index is None or not len(index.places):
        return np.zeros(num_keys, np.int64)
    return np.diff(index.starts.astype(np.int64), axis=1).sum(0)


def read_keys(folders: list[Path], name: str, first: int, last: int, schema: pa.Schema) -> pa.Table:
    """Return the rows whose key is in [first, last] of the tables of this name, in order.

    That is: folder by folder, batch by batch. A folder may lack the table. Nothing else is read.
    """
    copied, slices, files = [schema.empty_table()], [], 0
    for folder in folders:
        index = _read_index(folder, name)
        if index is None:
            continue
        runs = index.starts[:, [first, last + 1]].tolist()
        there = [n for n, (start, stop) in enumerate(runs) if stop > start]
        if not there:
            continue
        with pa.memory_map(str(_rows_file(folder, name))) as file:
            for n in there:
                start, stop = runs[n]
                slices.append(_batch(file, index.places[n], schema).slice(start, stop - start))
        files += 1
        if files == MAPPED_FILES or sum(len(batch) for batch in slices) >= MAPPED_ROWS:
            copied.append(_copied(slices))
            slices, files = [], 0
    return pa.concat_tables([*copied, _copied(slices)] if slices else copied)


def read_all(folder: Path, name: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield all rows of a table, without holding more than a batch."""
    index = _read_index(folder, name)
    if index is None:
        return
    for place in index.places:
        with pa.memory_map(str(_rows_file(folder, name))) as file:
            yield pa.Table.from_batches([_batch(file, place, schema)])


def _copied(slices: list[pa.RecordBatch]) -> pa.Table:
    """Return rows of mapped files in memory of their own, so that nothing holds the mappings."""
    table = pa.Table.from_batches(slices)
    return table.take(pa.array(np.arange(len(table))))


def _batch(file: pa.MemoryMappedFile, place: npt.NDArray, schema: pa.Schema) -> pa.RecordBatch:
    start, stop = place.tolist()
    file.seek(start)
    return pa.ipc.read_record_batch(file.read_buffer(stop - start), schema)


def _read_index(folder: Path, name: str) -> _Index | None:
    try:
        with _index_file(folder, name).open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None
    batches, keys = np.frombuffer(content, np.int64, 2).tolist()
    places = np.frombuffer(content, np.int64, 2 * batches, 16).reshape(batches, 2)
    starts = np.frombuffer(content, np.uint32, offset=16 + 16 * batches)
    return _Index(places, starts.reshape(batches, keys + 1))


def _rows_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.rows"


def _index_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.index"
