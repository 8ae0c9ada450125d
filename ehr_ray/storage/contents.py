"""Which files there are, in a folder of this machine and in one of a store."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from ehr_ray.storage.transfers import Stamp, join, stamp_of


def objects(store: Any, path: str) -> dict[str, Stamp]:
    """Return the files below a path by relative name; a file itself has the name "".

    Keys of a store are no paths: `..` in one is a hidden name here, and is never copied.
    """
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    itself = store.get_file_info(path)
    if itself.type == pafs.FileType.File:
        return {"": (itself.size, itself.mtime_ns)}
    return {
        os.path.relpath(info.path, path): (info.size, info.mtime_ns)
        for info in store.get_file_info(selector)
        if info.type == pafs.FileType.File
    }


def files_of(location: Path) -> dict[str, Stamp]:
    """Return the same of a location on this machine, without hidden names."""
    return dict(_found(location))


def _found(location: Path) -> Iterator[tuple[str, Stamp]]:
    if location.is_file():
        yield "", stamp_of(location) or (0, 0)
        return
    folders = [("", str(location))]
    while folders:
        below, folder = folders.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = join(below, entry.name)
                if entry.is_dir():
                    folders += [] if entry.is_symlink() else [(name, entry.path)]
                    continue
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    yield name, (status.st_size, status.st_mtime_ns)


def walked(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Yield a folder of this machine and those below it, in order, without hidden names.

    Of each what its files' names stand behind ("", or its own relative name and a slash), and
    these names in order. Links to folders are not followed.
    """
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        relative = os.path.relpath(at, folder)
        prefix = "" if relative == "." else f"{relative}/"
        yield prefix, sorted(name for name in names if not is_hidden(name))


def is_hidden(name: str) -> bool:
    """Whether a relative name, or a folder in it, begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))
