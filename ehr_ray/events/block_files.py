"""Files of model-ready rows, a shard each: Arrow batches of rows that are read together, blocks.

They are memory-mapped, so that every process of a machine shares one copy.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.batched import batched
from ehr_ray.events.brought import REMEDY
from ehr_ray.events.row_batches import CHECKSUM, Row, as_stream, checksum_of, known_of, to_batch
from ehr_ray.events.row_index import RowIndex
from ehr_ray.storage import files
from ehr_ray.storage.paths import canonical, local

CHUNK: Final = 256
"""Rows that are written, read and shuffled together: a block."""


def write_block(path: Path, rows: Iterable[Row], *, chunk: int = CHUNK) -> int:
    """Write rows to one file, which appears whole or not at all; return their number.

    Rows are held `chunk` at a time. No rows still make a (column-less) file.
    """
    count = 0
    with files.new_file(path) as partial, pa.OSFile(str(partial), "wb") as sink:
        writer: pa.RecordBatchFileWriter | None = None
        for part in batched(rows, chunk):
            batch = to_batch(part)
            # The schema is that of the first rows: nobody says before what arrays they have.
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch, custom_metadata={CHECKSUM: checksum_of(batch)})
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


def measured(rows: Iterable[Row]) -> bytes:
    """Return what is known of rows without having them, as an Arrow stream.

    Scalars by name, and as `#name` the number of elements of each array.
    """
    return as_stream(known_of(to_batch(part)) for part in batched(rows, CHUNK))


def measured_file(path: Path) -> bytes:
    """Return `measured` of the rows in a block file."""
    return as_stream(known_of(batch) for batch in _batches(path))


def scanned(paths: Sequence[Path]) -> RowIndex:
    """Return the index of block files by all of their blocks.

    Raises InputError for a file that is cut short.
    """
    parts, blocks = [], []
    for path in paths:
        batches = _batches(path)
        parts += [known_of(batch) for batch in batches]
        blocks.append(np.array([batch.num_rows for batch in batches], np.int64))
    return RowIndex.of(parts, blocks, np.array([p.stat().st_size for p in paths], np.int64))


def block_rows(count: int) -> npt.NDArray[np.int64]:
    """Return the rows of each block that so many rows are written in, int64."""
    return np.diff(np.minimum(np.arange(0, count + CHUNK, CHUNK), count))


def _batches(path: Path) -> list[pa.RecordBatch]:
    """Return the batches of a file, mapped; what they hold is not looked at."""
    with files.reads(path, REMEDY):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]
