"""Files that go to a store and come from it, each whole or not at all."""

import os
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import pyarrow.fs as pafs

from ehr_ray.errors import RunError
from ehr_ray.storage import files
from ehr_ray.storage.paths import inside

T = TypeVar("T")
R = TypeVar("R")
AT_ONCE: Final = 8
"""Files copied at once."""
Stamp = tuple[int, int]
"""Size in bytes, and time of change in nanoseconds since 1970."""


def stamp_of(path: str | Path) -> Stamp | None:
    """Return the stamp of a file of this machine; None without it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def download(store: Any, path: str, target: Path, stamp: Stamp) -> None:
    """Copy an object to a file that appears whole, with the time of change of the object."""
    here = pafs.LocalFileSystem()
    with files.replacing(inside(target)) as partial:
        pafs.copy_files(path, str(partial), source_filesystem=store, destination_filesystem=here)
        if partial.stat().st_size != stamp[0]:
            raise RunError(f"{path}: changed while it was copied; run the same command again")
        # Before it appears: with another time it would pass for changed, and be sent back.
        os.utime(partial, ns=(stamp[1], stamp[1]))


def stand_in(target: Path, stamp: Stamp) -> None:
    """Leave a file of a size and a time of change that holds nothing, and takes no room.

    The caller holds its folder.
    """
    inside(target).parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # what a link leads to is not written to
    # Not waited for, as a million of them would take hours: one that a crash leaves half made has
    # another stamp, and is made again.
    with open(target, "xb") as file:
        file.truncate(stamp[0])
    os.utime(target, ns=(stamp[1], stamp[1]))


def upload(store: Any, source: Path, path: str) -> None:
    """Write an object by one call of the library: no signal comes between its beginning and end.

    Objects of a store appear when they are complete; on a mounted folder it takes a rename.
    """
    here = pafs.LocalFileSystem()
    if store.type_name != "local":
        pafs.copy_files(str(source), path, source_filesystem=here, destination_filesystem=store)
        return
    with files.replacing(Path(path)) as partial:
        pafs.copy_files(
            str(source), str(partial), source_filesystem=here, destination_filesystem=store
        )


def each(function: Callable[[str], None], names: Collection[str]) -> None:
    """Call a function on names, some at once; the first error ends those that have not begun."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for done in [pool.submit(function, name) for name in sorted(names)]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def at_once(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return what a function, which waits for a store, gives of each item, in their order."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        return [*pool.map(function, items)]
    finally:
        pool.shutdown(cancel_futures=True)


def join(path: str, name: str) -> str:
    """Return the path of a name below a path of a store; either may be ""."""
    return f"{path}/{name}" if path and name else path or name
