"""Model-ready rows on disk: Arrow files that are memory-mapped, so every rank shares one copy.

A row's arrays have a ragged first axis and fixed further ones. In a file each is a list column
(the further axes flattened, their sizes in the schema); scalars are plain columns.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import DamagedRowsError, InputError
from ehr_ray.events.brought import REMEDY, BroughtFiles, mapped
from ehr_ray.events.row_index import LENGTH, RowIndex, read_index
from ehr_ray.storage import files
from ehr_ray.storage.paths import canonical, local

T = TypeVar("T")
Row = Mapping[str, np.ndarray]
Window = Sequence[npt.NDArray[np.int64]]
"""Indices of rows that are read together, int64, in the parts they are read in."""
CHUNK: Final = 256
"""Rows that are written, read and shuffled together: a block."""

FEW: Final = 4
"""Of a file that is not here blocks alone are read where so many times as many are not wanted."""

RANKS: Final = "LOCAL_WORLD_SIZE"
"""Environment variable, of torch and Ray Train: ranks of a training on this node."""

OPEN_BLOCKS: Final = 4096
"""Blocks whose columns a store keeps at hand, some kB each: those of many windows."""
OPEN_FILES: Final = 64
"""Files that a store keeps mapped for blocks to come: a mapping is of a whole file."""

CHECKSUM = b"crc32"
"""Key of a batch's checksum in its metadata: Arrow files have none of their own."""


def write_block(path: Path, rows: Iterable[Row], *, chunk: int = CHUNK) -> int:
    """Write rows to one file, which appears whole or not at all; return their number.

    Rows are held `chunk` at a time. No rows still make a (column-less) file.
    """
    count = 0
    with files.new_file(path) as partial, pa.OSFile(str(partial), "wb") as sink:
        writer: pa.RecordBatchFileWriter | None = None
        for part in chunks(rows, chunk):
            batch = _to_batch(part)
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch, custom_metadata={CHECKSUM: _checksum(batch)})
            count += len(part)
        (writer or pa.ipc.new_file(sink, pa.schema([]))).close()
    return count


@dataclass(frozen=True)
class BlockFiles(Sequence[Path]):
    """The block files of a split, in order; the path of one is made when it is asked for.

    Args:
        folder: path or URI of the folder that they lie in.
        names: of each in it.
    """

    folder: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.names)

    @overload
    def __getitem__(self, place: int) -> Path: ...

    @overload
    def __getitem__(self, place: slice) -> "BlockFiles": ...

    def __getitem__(self, place: int | slice) -> "Path | BlockFiles":
        """Return the path of one on this machine, or some of the files."""
        if isinstance(place, slice):
            return BlockFiles(self.folder, self.names[place])
        return local(self.folder) / self.names[place]

    def texts(self) -> list[str]:
        """Return the paths of all on this machine, as text."""
        folder = local(self.folder)
        return [f"{folder}{os.sep}{name}" for name in self.names]

    def named(self) -> "BlockFiles":
        """Return them by a folder that every machine finds."""
        return BlockFiles(canonical(self.folder), self.names)

    def here(self) -> "BlockFiles":
        """Return them by their folder on this machine."""
        return BlockFiles(str(local(self.folder)), self.names)


class RowStore(Protocol):
    """Rows of a split as the loader sees them, in files or made when they are asked for."""

    lengths: npt.NDArray[np.int64]
    """Elements of each row: what batches are bucketed by, int64 [rows]."""
    block_sizes: npt.NDArray[np.int64]
    """Rows of each block read together, int64."""
    shard_blocks: npt.NDArray[np.int64]
    """Blocks of each shard that has any, int64."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def column(self, name: str) -> np.ndarray:
        """Return a scalar of every row, in order."""

    def sizes(self, name: str) -> npt.NDArray[np.int64]:
        """Return the length of an array of every row, in order."""

    def rows(self, indices: Iterable[int], *, again: bool = False) -> Sequence[Row]:
        """Return several rows; `again` says that they will be asked for more than once."""

    def read(
        self, windows: Iterable[Window], then: Iterable[Window] = ()
    ) -> Generator[Sequence[Row], None, None]:
        """Yield the rows of each part; those of a window lie in few shards, and are read once.

        Of `then`, which is read next by another call, the first may be brought near, or made.
        """


class BlockStore:
    """Random access to the rows of several block files.

    A file that is gone or cut short is an `InputError` at once, by its size. It is mapped, and a
    block of it looked at, when a row of the block is first asked for: flipped bits are an error
    then, and so is a file that is gone or has another size by now.

    Args:
        paths: files of `write_block`; their order is the order of the rows.
        index: file of what is known of their rows; where it is none of theirs they are read for it.
        fetch: brings the file of a path to this machine; without one they are here. A file is then
            brought, and mapped, when a row of it is wanted, and all are where there is no index.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        index: Path | None = None,
        fetch: Callable[[Path], Path] | None = None,
    ) -> None:
        self._paths, self._kept_in = paths, index
        self._brought = BroughtFiles(self._paths, fetch, self._forget) if fetch else None
        sizes: Sequence[int | None] = [None] * len(paths) if fetch else _sizes(paths)
        found = None if index is None else read_index(index, sizes)
        if found is None:
            brought = self._brought
            here = [brought.here(i) for i in range(len(paths))] if brought else self._paths
            found = scanned(here)
        self.index = found
        assert found.stamps is not None  # they are of files
        self._sizes = found.stamps
        if self._brought is not None:
            self._brought.sizes = found.stamps
        self.block_sizes, self.shard_blocks = self.index.block_sizes, self.index.shard_blocks
        self.lengths = self.index.lengths
        self._ends = np.cumsum(self.block_sizes)
        self._file_ends = np.cumsum(self.index.counts)
        self._checked = np.zeros(len(self.block_sizes), bool)
        self._blocks: dict[int, dict[str, _Column]] = {}
        self._files: dict[int, pa.Buffer] = {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.index)

    def row(self, index: int) -> dict[str, np.ndarray]:
        """Return one row; its arrays are read-only views of the file."""
        return self._read(np.array([index]))[0]

    def _read(self, indices: npt.NDArray[np.int64]) -> list[dict[str, np.ndarray]]:
        """Return several rows, whose blocks are looked for together."""
        blocks = np.searchsorted(self._ends, indices, side="right")
        within = indices - (self._ends[blocks] - self.block_sizes[blocks])
        found = []
        for block, place in zip(blocks.tolist(), within.tolist(), strict=True):
            columns = self._blocks.get(block) or self._open(block)
            found.append({name: column.get(place) for name, column in columns.items()})
        return found

    def _open(self, block: int) -> dict[str, "_Column"]:
        """Return the columns of a block, of which the last `OPEN_BLOCKS` stay."""
        shard = int(np.searchsorted(self._file_ends, block, side="right"))
        number = block - (int(self._file_ends[shard - 1]) if shard else 0)
        path, brought = self._paths[shard], self._brought
        file = self._map(shard) if brought is None else brought.get(shard)
        try:
            with files.reads(path, REMEDY):
                reader = pa.ipc.open_file(file)
                batch, metadata = reader.get_batch_with_custom_metadata(number)
        except InputError as error:
            raise DamagedRowsError(str(error)) from error
        if not self._checked[block]:
            self._check(path, block, batch, metadata)
            self._checked[block] = True
        if len(self._blocks) >= OPEN_BLOCKS:
            self._blocks.pop(next(iter(self._blocks)), None)
        self._blocks[block] = columns = _columns(batch)
        return columns

    def _map(self, shard: int) -> pa.Buffer:
        """Return a file that is here, of which the last `OPEN_FILES` stay mapped."""
        found = self._files.pop(shard, None)
        if found is None:
            found = mapped(self._paths[shard], int(self._sizes[shard]))
        if len(self._files) >= OPEN_FILES:
            self._files.pop(next(iter(self._files)), None)
        self._files[shard] = found
        return found

    def _forget(self, shard: int) -> None:
        """Drop the blocks of a file that is here no more."""
        end = int(self._file_ends[shard])
        start = end - int(self.index.counts[shard])
        self._checked[start:end] = False
        for block in range(start, end):
            self._blocks.pop(block, None)

    def column(self, name: str) -> np.ndarray:
        """Return a scalar of every row, in order; it must be one of their names."""
        return self.index.column(name)

    def sizes(self, name: str) -> npt.NDArray[np.int64]:
        """Return the length of an array of every row, in order; it must be one of their names."""
        return self.index.column(f"{LENGTH}{name}")

    def rows(self, indices: Iterable[int], *, again: bool = False) -> list[dict[str, np.ndarray]]:
        """Return several rows; of files of which few blocks are wanted, once, these alone are read.

        `again` says that they are asked for more than once: then the files come.
        """
        chosen = np.fromiter(indices, np.int64)
        if self._brought is None:
            return self._read(chosen)
        apart = {} if again else self._apart(chosen)
        self._brought.want(self._shards([chosen[[int(i) not in apart for i in chosen]]]))
        return [apart.get(int(i)) or self.row(int(i)) for i in chosen]

    def _apart(self, chosen: npt.NDArray[np.int64]) -> dict[int, dict[str, np.ndarray]]:
        """Return by index the rows whose files do not come for them, as few of their blocks would.

        They are copies: a block that has one of them is not held.
        """
        brought = self._brought
        assert brought is not None
        # Ranks of a node ask for the same rows: together no more than the copy they would share.
        least = max(FEW, int(os.environ.get(RANKS, "1")))
        rows = np.unique(chosen)
        blocks = np.searchsorted(self._ends, rows, "right")
        shards = np.searchsorted(self._file_ends, blocks, "right")
        wanted: dict[int, dict[int, list[int]]] = {}
        for row, block, shard in zip(rows.tolist(), blocks.tolist(), shards.tolist(), strict=True):
            wanted.setdefault(shard, {}).setdefault(block, []).append(row)
        few = [
            (shard, own)
            for shard, own in wanted.items()
            if least * len(own) <= self.index.counts[shard] and not brought.is_here(shard)
        ]
        found: dict[int, dict[str, np.ndarray]] = {}
        for some in brought.each(lambda one: self._taken(*one), few):
            found |= some
        return found

    def _taken(
        self, shard: int, wanted: Mapping[int, Sequence[int]]
    ) -> dict[int, dict[str, np.ndarray]]:
        """Return rows of a file by index, of which no more is read than their blocks."""
        assert self._brought is not None
        first = int(self._file_ends[shard] - self.index.counts[shard])
        found = {}
        batches = self._brought.batches(shard, [block - first for block in wanted])
        for (batch, metadata), (block, rows) in zip(batches, wanted.items(), strict=True):
            self._check(self._paths[shard], block, batch, metadata)
            start = int(self._ends[block] - self.block_sizes[block])
            columns = _columns(batch.take(pa.array([row - start for row in rows])))
            for place, row in enumerate(rows):
                found[row] = {name: column.get(place) for name, column in columns.items()}
        return found

    def _check(self, path: Path, block: int, batch: pa.RecordBatch, metadata: Any) -> None:
        """Raise DamagedRowsError for a block that is not what was written, or what is known of it.

        An index of other files of the same sizes is seen by that.
        """
        checksum = None if metadata is None else metadata.get(CHECKSUM)
        if checksum is not None and _checksum(batch) != checksum:
            raise DamagedRowsError(f"{path}: its rows are not those that were written; {REMEDY}")
        known = self.index.table.slice(self._ends[block] - batch.num_rows, batch.num_rows)
        if batch.num_rows != self.block_sizes[block] or not _same(_known(batch), known):
            raise DamagedRowsError(
                f"{path}: its rows are not those that {self._kept_in} tells of; remove both, and "
                "they are made again"
            )

    def read(
        self, windows: Iterable[Window], then: Iterable[Window] = ()
    ) -> Generator[list[dict[str, np.ndarray]], None, None]:
        """Yield the rows of each part; files of a window are brought while the last one is used.

        So are those of the first window of `then`, while the last one of all is.
        """
        with contextlib.closing(self._wanted(windows, then)) as wanted:
            for window in wanted:
                for part in window:
                    yield self._read(np.asarray(part, np.int64))

    def _wanted(
        self, windows: Iterable[Window], then: Iterable[Window]
    ) -> Generator[Window, None, None]:
        """Yield each window once its files, and those of the one that follows, are on their way."""
        if self._brought is None:
            yield from windows
            return
        ahead = iter(windows)
        window = next(ahead, None)
        try:
            while window is not None:
                following = next(ahead, None)
                near = next(iter(then), ()) if following is None else following
                self._brought.want([*self._shards(window), *self._shards(near)])
                yield window
                window = following
        finally:
            self._brought.cancel()

    def _shards(self, window: Window) -> list[int]:
        """Return the files that rows lie in."""
        blocks = np.searchsorted(self._ends, np.concatenate([np.zeros(0, int), *window]), "right")
        found: list[int] = np.unique(np.searchsorted(self._file_ends, blocks, "right")).tolist()
        return found


class _Column:
    """One Arrow column as numpy: scalars, or offsets into flat values."""

    def __init__(self, array: pa.Array, field: pa.Field) -> None:
        self.scalar = not pa.types.is_large_list(array.type)
        if self.scalar:
            self.values = array.to_numpy(zero_copy_only=False)
            self.lengths = np.zeros(len(array), np.int64)
            return
        metadata = field.metadata or {}
        self.shape: list[int] = json.loads(metadata.get(b"shape", b"[]"))
        self.offsets = array.offsets.to_numpy()
        self.values = array.values.to_numpy(zero_copy_only=False)
        self.values = self.values.view(bool) if b"bool" in metadata else self.values
        self.lengths = np.diff(self.offsets)

    def get(self, index: int) -> np.ndarray:
        if self.scalar:
            return np.asarray(self.values[index])
        flat = self.values[self.offsets[index] : self.offsets[index + 1]]
        return flat.reshape(-1, *self.shape) if self.shape else flat


def to_bytes(rows: Sequence[Row]) -> bytes:
    """Return rows, at least one, as they would be written to a block."""
    return _stream(_to_batch(list(rows)))


def from_bytes(data: bytes) -> list[dict[str, np.ndarray]]:
    """Return the rows of `to_bytes`, as `BlockStore` gives them."""
    (batch,) = pa.ipc.open_stream(data)
    columns = _columns(batch)
    return [
        {name: column.get(place) for name, column in columns.items()}
        for place in range(batch.num_rows)
    ]


def measured(rows: Iterable[Row]) -> bytes:
    """Return what is known of rows without having them, as an Arrow stream.

    Scalars by name, and as `#name` the number of elements of each array.
    """
    return _told(_known(_to_batch(part)) for part in chunks(rows, CHUNK))


def measured_file(path: Path) -> bytes:
    """Return `measured` of the rows in a block file."""
    return _told(_known(batch) for batch, _ in _batches(path))


def scanned(paths: Sequence[Path]) -> RowIndex:
    """Return the index of block files by all of their blocks.

    Raises InputError for a file that is cut short.
    """
    parts, blocks = [], []
    for path in paths:
        batches = [batch for batch, _ in _batches(path)]
        parts += [_known(batch) for batch in batches]
        blocks.append(np.array([batch.num_rows for batch in batches], np.int64))
    return RowIndex.of(parts, blocks, np.array([p.stat().st_size for p in paths], np.int64))


def _sizes(paths: Sequence[Path]) -> list[int]:
    """Return the bytes of files; InputError for one that is not there."""
    found = []
    for path in paths.texts() if isinstance(paths, BlockFiles) else paths:
        try:
            found.append(os.stat(path).st_size)
        except OSError as error:
            raise files.unreadable(path, error, REMEDY) from error
    return found


def block_rows(count: int) -> npt.NDArray[np.int64]:
    """Return the rows of each block that so many rows are written in, int64."""
    return np.diff(np.minimum(np.arange(0, count + CHUNK, CHUNK), count))


def _known(batch: pa.RecordBatch) -> pa.Table:
    columns: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        lists = pa.types.is_large_list(column.type)
        key, values = (f"{LENGTH}{name}", np.diff(column.offsets)) if lists else (name, column)
        columns[key] = values
    return pa.table(columns)


def _same(own: pa.Table, known: pa.Table) -> bool:
    """Whether what is known of rows has what a block says of them; what is no number is alike."""
    for name in own.column_names:
        ours, theirs = own[name].to_numpy(), known[name].to_numpy()
        if not np.all((ours == theirs) | ((ours != ours) & (theirs != theirs))):
            return False
    return True


def _told(tables: Iterable[pa.Table]) -> bytes:
    parts = list(tables)
    whole = pa.concat_tables(parts) if parts else pa.table({})
    return _stream(*whole.to_batches(), schema=whole.schema)


def _stream(*batches: pa.RecordBatch, schema: pa.Schema | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema if schema is None else schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _columns(batch: pa.RecordBatch) -> dict[str, "_Column"]:
    return {
        name: _Column(batch.column(i), batch.schema.field(i))
        for i, name in enumerate(batch.schema.names)
    }


def _batches(path: Path) -> list[tuple[pa.RecordBatch, bytes | None]]:
    """Return the batches of a file with their checksums, None where it was written without."""
    found = []
    with files.reads(path, REMEDY):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for index in range(reader.num_record_batches):
            batch, metadata = reader.get_batch_with_custom_metadata(index)
            found.append((batch, None if metadata is None else metadata.get(CHECKSUM)))
    return found


def _checksum(batch: pa.RecordBatch) -> bytes:
    found = 0
    for column in batch.columns:
        lists = pa.types.is_large_list(column.type)
        for part in (column.offsets, column.values) if lists else (column,):
            values = part.to_numpy(zero_copy_only=False)
            if values.dtype == object:
                values = np.frombuffer(repr(part.to_pylist()).encode(), np.uint8)
            if len(values):
                found = zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data, found)
    return f"{found:08x}".encode()


def chunks(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items; the last may be shorter."""
    part: list[T] = []
    for row in rows:
        part.append(row)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def _to_batch(rows: list[Row]) -> pa.RecordBatch:
    arrays, fields = [], []
    for name, example in rows[0].items():
        values = [np.asarray(row[name]) for row in rows]
        if np.ndim(example) == 0:
            array, metadata = pa.array(np.stack(values)), None
        else:
            offsets = np.cumsum([0] + [v.size for v in values])
            flat = np.concatenate([v.reshape(-1) for v in values])
            # Booleans are bits in Arrow, which numpy cannot view: bytes are mapped as they are.
            metadata = {"shape": json.dumps(list(np.shape(example)[1:]))}
            if flat.dtype == bool:
                flat, metadata["bool"] = flat.view(np.uint8), ""
            array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat))
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=metadata))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
