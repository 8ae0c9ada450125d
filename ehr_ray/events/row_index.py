"""What is known of the rows of a split without reading any: lengths and scalars, in a mapped file.

A file of it is one Arrow batch, so that each column is an array of numpy over the file: what is not
asked for takes no memory, and processes of a machine share what is.
"""

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.storage import files

Indices = npt.NDArray[np.int64]
LENGTH: Final = "#"
"""Column of the elements of a row in all of its arrays; `#name` is of one of them."""
CHECKSUM: Final = "crc32"
"""Key of an index's checksum in its file."""


class RowIndex:
    """What is known of rows, shard after shard.

    Args:
        table: scalars by name, as `#name` the elements of each array, and all of them as `#`.
        block_sizes: rows of each block, int64 [blocks].
        counts: blocks of each shard, int64 [shards].
        stamps: what tells each shard from others, as the bytes of its file, int64 [shards]; none
            where it is not kept.
    """

    def __init__(
        self,
        table: pa.Table,
        block_sizes: Indices,
        counts: Indices,
        stamps: Indices | None = None,
    ) -> None:
        self.table, self.block_sizes, self.counts = table, block_sizes, counts
        self.stamps = stamps

    @classmethod
    def of(
        cls,
        parts: Sequence[pa.Table],
        blocks: Sequence[Indices],
        stamps: Indices | None = None,
    ) -> "RowIndex":
        """Return the index of shards, each a table as `measured` gives it, or an index's own.

        `blocks` are the rows of each block, int64 [blocks] a shard.
        """
        known = [_with_length(part) for part in parts if len(part)]
        empty = pa.table({LENGTH: np.zeros(0, np.int64)})
        table = pa.concat_tables(known, promote_options="permissive") if known else empty
        sizes = np.concatenate([np.zeros(0, np.int64), *blocks])
        return cls(table, sizes, np.array([len(own) for own in blocks], np.int64), stamps)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.table)

    @property
    def shard_blocks(self) -> Indices:
        """Blocks of each shard that has any, int64."""
        return self.counts[self.counts > 0]

    @cached_property
    def lengths(self) -> Indices:
        """Elements of each row, int64 [rows]."""
        return self.column(LENGTH)

    def column(self, name: str) -> np.ndarray:
        """Return a column of every row; no rows have any of them."""
        if not len(self):
            return np.zeros(0, np.int64 if name.startswith(LENGTH) else np.float64)
        column = self.table[name]
        array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
        return np.asarray(array.to_numpy(zero_copy_only=False))

    def write(self, path: Path) -> None:
        """Write it by rename; it must have stamps. ResourcesUnavailableError where it cannot."""
        table = self.table.combine_chunks()
        whole = RowIndex(table, self.block_sizes, self.counts, self.stamps)
        metadata = {name: array.tobytes() for name, array in whole._arrays().items()}
        schema = table.schema.with_metadata({**metadata, CHECKSUM: whole.checksum()})
        with (
            files.new_file(path) as partial,
            pa.OSFile(str(partial), "wb") as sink,
            pa.ipc.new_file(sink, schema) as writer,
        ):
            writer.write_table(table)

    def checksum(self) -> bytes:
        """Return the CRC-32 of all it says, in hexadecimal digits; it must have stamps."""
        columns = {name: self.column(name) for name in self.table.column_names}
        found = 0
        for name, array in {**columns, **self._arrays()}.items():
            # Texts come as objects, whose bytes are addresses.
            values = repr(array.tolist()).encode() if array.dtype == object else array
            found = zlib.crc32(name.encode(), found)
            if len(array):
                found = zlib.crc32(np.frombuffer(values, np.uint8).data, found)
        return f"{found:08x}".encode()

    def _arrays(self) -> dict[str, Indices]:
        assert self.stamps is not None
        return {"stamps": self.stamps, "counts": self.counts, "block_sizes": self.block_sizes}


def _with_length(part: pa.Table) -> pa.Table:
    if LENGTH in part.column_names:
        return part
    total = np.zeros(len(part), np.int64)
    for name in part.column_names:
        if name.startswith(LENGTH):
            total += part[name].to_numpy()
    return part.append_column(LENGTH, pa.array(total))


def read_index(path: Path, sizes: Sequence[int | None], *, whole: bool = False) -> RowIndex | None:
    """Return the index in a file, mapped; None where there is none of files of these bytes.

    The bytes of a file that is not here may be None. With `whole` all of it is read, once, and held
    against its checksum: who has the rows in files sees in these what is wrong with it.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        found: Mapping[bytes, bytes] = reader.schema.metadata or {}
        stamps, counts, blocks = (
            np.frombuffer(found[name], np.int64) for name in (b"stamps", b"counts", b"block_sizes")
        )
        table = reader.read_all()
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None  # it is only a shorter way to what the files say
    same = [at in (None, stamp) for at, stamp in zip(sizes, stamps, strict=False)]
    if len(stamps) != len(sizes) or not all(same) or len(table) != blocks.sum():
        return None
    index = RowIndex(table, blocks, counts, stamps)
    if whole and index.checksum() != found.get(CHECKSUM.encode()):
        return None
    return index
