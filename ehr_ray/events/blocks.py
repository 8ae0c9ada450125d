"""Model-ready rows by number: what the loader asks of a split, and how block files give it."""

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import DamagedRowsError, InputError
from ehr_ray.events.block_files import BlockFiles, scanned
from ehr_ray.events.brought import REMEDY, BroughtFiles, mapped
from ehr_ray.events.row_batches import CHECKSUM, Column, Row, checksum_of, columns_of, known_of
from ehr_ray.events.row_index import LENGTH, read_index
from ehr_ray.storage import files

Window = Sequence[npt.NDArray[np.int64]]
"""Indices of rows that are read together, int64, in the parts they are read in."""
FEW: Final = 4
"""Of a file that is not here blocks alone are read where so many times as many are not wanted."""

RANKS: Final = "LOCAL_WORLD_SIZE"
"""Environment variable, of torch and Ray Train: ranks of a training on this node."""

OPEN_BLOCKS: Final = 4096
"""Blocks whose columns a store keeps at hand, some kB each: those of many windows."""
OPEN_FILES: Final = 64
"""Files that a store keeps mapped for blocks to come: a mapping is of a whole file."""


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
        # Of a store each size would be a request: a file that is brought is held against the index.
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
        self._blocks: dict[int, dict[str, Column]] = {}
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

    def _open(self, block: int) -> dict[str, Column]:
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
            # One worker alone meets it, in the midst of a training: told apart from bad input.
            raise DamagedRowsError(str(error)) from error
        if not self._checked[block]:
            self._check(path, block, batch, metadata)
            self._checked[block] = True
        if len(self._blocks) >= OPEN_BLOCKS:
            self._blocks.pop(next(iter(self._blocks)), None)
        self._blocks[block] = columns = columns_of(batch)
        return columns

    def _map(self, shard: int) -> pa.Buffer:
        """Return a file that is here, of which the last `OPEN_FILES` stay mapped."""
        found = self._files.pop(shard, None)
        if found is None:
            found = mapped(self._paths[shard], int(self._sizes[shard]))
        # The first key is of the file used longest ago. Blocks of it that are at hand keep the
        # mapping that they are views of: no row goes away under whoever holds it.
        if len(self._files) >= OPEN_FILES:
            self._files.pop(next(iter(self._files)), None)
        self._files[shard] = found
        return found

    def _forget(self, shard: int) -> None:
        """Drop the blocks of a file that is here no more."""
        end = int(self._file_ends[shard])
        start = end - int(self.index.counts[shard])
        self._checked[start:end] = False  # the next copy is another one
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
            # `take` copies: a few rows would else keep all that was read of the file.
            columns = columns_of(batch.take(pa.array([row - start for row in rows])))
            for place, row in enumerate(rows):
                found[row] = {name: column.get(place) for name, column in columns.items()}
        return found

    def _check(self, path: Path, block: int, batch: pa.RecordBatch, metadata: Any) -> None:
        """Raise DamagedRowsError for a block that is not what was written, or what is known of it.

        An index of other files of the same sizes is seen by that.
        """
        checksum = None if metadata is None else metadata.get(CHECKSUM)
        if checksum is not None and checksum_of(batch) != checksum:
            raise DamagedRowsError(f"{path}: its rows are not those that were written; {REMEDY}")
        known = self.index.table.slice(self._ends[block] - batch.num_rows, batch.num_rows)
        if batch.num_rows != self.block_sizes[block] or not _same(known_of(batch), known):
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
                # One window ahead: what is wanted is never removed to make room.
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


def _sizes(paths: Sequence[Path]) -> list[int]:
    """Return the bytes of files; InputError for one that is not there."""
    found = []
    for path in paths.texts() if isinstance(paths, BlockFiles) else paths:
        try:
            found.append(os.stat(path).st_size)
        except OSError as error:
            raise files.unreadable(path, error, REMEDY) from error
    return found


def _same(own: pa.Table, known: pa.Table) -> bool:
    """Whether what is known of rows has what a block says of them; what is no number is alike."""
    for name in own.column_names:
        ours, theirs = own[name].to_numpy(), known[name].to_numpy()
        if not np.all((ours == theirs) | ((ours != ours) & (theirs != theirs))):
            return False
    return True
