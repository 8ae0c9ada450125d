"""Block files in a store, which are brought and mapped when their rows are wanted."""

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import DamagedRowsError, InputError, RowsUnavailableError, RunError
from ehr_ray.storage import files, in_place
from ehr_ray.storage.paths import inside

Batch = tuple[pa.RecordBatch, Any]
"""A block with its metadata."""
Item = TypeVar("Item")
Made = TypeVar("Made")
AT_ONCE: Final = 8
"""Files brought at once."""
ROOM: Final = 2 * AT_ONCE
"""Largest files that shall fit on the disk of the copies; others make room for them."""
PATIENCE: Final = 60.0
"""Seconds for which a store that gives a file no more is asked again."""
PAUSE: Final = 2.0
REMEDY: Final = "remove it, and it is made again"
REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT)
"""What a disk says that waiting does not mend."""


class BroughtFiles:
    """The mapped files of some paths, brought when they are wanted.

    Where their disk has no room for more, copies are removed: first those that were not used here,
    as of rows that were made on this node, then those used longest ago, but none of those that
    `want` named last. A mapping of one, in another process too, outlives its name.

    Args:
        paths: of the copies.
        fetch: makes one as it is in its store.
        forget: told of a file that was removed here.
    """

    def __init__(
        self, paths: Sequence[Path], fetch: Callable[[Path], Path], forget: Callable[[int], None]
    ) -> None:
        self._paths, self._fetch, self._forget = paths, fetch, forget
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="blocks")
        self._coming: dict[int, Future[pa.Buffer]] = {}
        self._files: dict[int, pa.Buffer] = {}
        self._wanted: set[int] = set()
        self._removed: list[int] = []
        self._unused: list[int] | None = None
        self._lock = threading.Lock()
        self.sizes: npt.NDArray[np.int64] | None = None
        """Bytes that they must have, int64 [files]; None: not known."""

    def want(self, files_wanted: Iterable[int]) -> None:
        """Begin to bring some, which stay until others are wanted."""
        self._tell()
        self._wanted = {*files_wanted}
        coming = self._coming.items()
        self._coming = {f: one for f, one in coming if f in self._wanted or not one.done()}
        for file in sorted(self._wanted - self._files.keys() - self._coming.keys()):
            self._coming[file] = self._pool.submit(self._brought, file)

    def cancel(self) -> None:
        """Bring nothing more that has not begun: it would hold up the end of the process."""
        self._coming = {file: one for file, one in self._coming.items() if not one.cancel()}

    def get(self, file: int) -> pa.Buffer:
        """Return one; InputError and RowsUnavailableError name what is wrong with it."""
        self._tell()
        with self._lock:
            if (found := self._files.pop(file, None)) is not None:
                self._files[file] = found  # the last is the one used last
                return found
        coming = self._coming.pop(file, None)
        try:
            found = self._brought(file) if coming is None else coming.result()
        except (RowsUnavailableError, CancelledError):
            if coming is None:
                raise
            found = self._brought(file)  # that was a while ago
        with self._lock:
            self._files[file] = found
        return found

    def here(self, file: int) -> Path:
        """Return the path of one, once it is here."""
        path = self._paths[file]

        def come() -> Path:
            self._make_room()
            return self._fetch(path)

        return _patiently(path, come)

    def each(self, function: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
        """Yield what a function makes of items, in order, of as many at once as are brought."""
        return self._pool.map(function, items)

    def batches(self, file: int, numbers: Sequence[int]) -> list[Batch]:
        """Return some blocks of a file, of which nothing else travels; errors are as of `get`."""
        return _patiently(self._paths[file], lambda: self._ranges(file, numbers))

    def _ranges(self, file: int, numbers: Sequence[int]) -> list[Batch]:
        path = self._paths[file]
        with in_place.opened(path.parent, path.name) as source:
            if source is None:
                raise InputError(f"{path}: no such file; {REMEDY}")
            if self.sizes is not None and source.size() != self.sizes[file]:
                raise changed(path)
            try:
                reader = pa.ipc.open_file(source)
                return [reader.get_batch_with_custom_metadata(number) for number in numbers]
            except pa.ArrowInvalid as error:
                raise files.unreadable(path, error, REMEDY) from error

    def is_here(self, file: int) -> bool:
        """Whether there is a copy of a file, or there will be one soon."""
        return file in self._files or file in self._coming or os.path.exists(self._paths[file])

    def _brought(self, file: int) -> pa.Buffer:
        size = None if self.sizes is None else int(self.sizes[file])
        for _ in range(3):  # another process may make room between one line and the next
            path = self.here(file)
            try:
                return mapped(path, size)
            except DamagedRowsError:
                if os.path.exists(path):
                    raise
        raise RowsUnavailableError(f"{path}: others remove what is brought; free space on its disk")

    def _tell(self) -> None:
        """Tell of files that were removed, in the thread that reads."""
        with self._lock:
            removed, self._removed = self._removed, []
        for file in removed:
            self._forget(file)

    def _make_room(self) -> None:
        if self.sizes is None or not len(self.sizes):
            return
        folder = next(path for path in self._paths[0].parents if os.path.isdir(path))
        with self._lock:
            while is_short(folder, int(self.sizes.max())) and (file := self._dropped()) is not None:
                inside(self._paths[file]).unlink(missing_ok=True)

    def _dropped(self) -> int | None:
        """Forget the file that is missed least, and return it; None where all are wanted."""
        if self._unused is None:
            self._unused = [file for file, path in enumerate(self._paths) if os.path.exists(path)]
        while self._unused:
            file = self._unused.pop()
            if file not in self._files and file not in self._wanted:
                return file
        oldest = next((file for file in self._files if file not in self._wanted), None)
        if oldest is not None:
            del self._files[oldest]
            self._removed.append(oldest)
        return oldest


def _patiently(path: Path, ask: Callable[[], Made]) -> Made:
    """Return what a store gives of a file, which is asked again for `PATIENCE` seconds.

    So is a disk that is full or away. What it refuses is an error of the file at once.
    """
    begun = time.monotonic()
    while True:
        try:
            return ask()
        except InputError as error:
            raise DamagedRowsError(str(error)) from error
        except (RunError, OSError) as error:
            problem = error
            if isinstance(error, OSError):
                problem = files.failed(error.filename or path, error)
                if error.errno in REFUSED:
                    raise DamagedRowsError(str(problem)) from error
            if time.monotonic() - begun > PATIENCE:
                raise RowsUnavailableError(str(problem)) from error
            time.sleep(PAUSE)


def changed(path: Path) -> DamagedRowsError:
    """Return the error of a file that has other bytes than it had."""
    return DamagedRowsError(f"{path}: has changed while it was used; train again")


def is_short(folder: Path, size: int) -> bool:
    """Whether the disk of a folder has no room for `ROOM` files of so many bytes."""
    return shutil.disk_usage(folder).free < ROOM * size


def mapped(path: Path, size: int | None) -> pa.Buffer:
    """Return a file's bytes as a view of its mapping, which outlives its name.

    DamagedRowsError where it cannot be read, or has other than so many bytes; None: any.
    """
    try:
        with files.reads(path, REMEDY), pa.memory_map(str(path)) as file:
            buffer: pa.Buffer = file.read_buffer()
    except InputError as error:
        raise DamagedRowsError(str(error)) from error
    if size is not None and buffer.size != size:
        raise changed(path)
    return buffer
