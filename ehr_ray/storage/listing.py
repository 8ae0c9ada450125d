"""Files of a copy that are known without being there: a listing of a folder of the store.

A process that sees to it that others read shards needs their names, sizes and times, not the
shards. `sync.fetch` with `listed` leaves them there, and here what is said of them.
"""

import contextlib
import json
import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Final

from ehr_ray.storage import files
from ehr_ray.storage.contents import walked
from ehr_ray.storage.paths import absolute, inside, staging, uri_of
from ehr_ray.storage.transfers import Stamp, stamp_of

LISTING: Final = ".listing.json"
"""File in a copy: of the files of a folder in it that were not copied, size and time by name."""


def write(root: Path, found: dict[str, Stamp]) -> None:
    """Leave what is said of files of the copy `root` by relative name; their folders are made.

    Of no files nothing is left.
    """
    if not found:
        (root / LISTING).unlink(missing_ok=True)
        return
    for name in found:
        inside(root / name).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(inside(root / LISTING), json.dumps(found))


def parquet_below(folder: Path) -> list[Path]:
    """Return the Parquet files below a folder, here or in its store, in no order.

    Hidden ones are none of them.
    """
    return [*map(Path, texts_below(folder))]


def texts_below(folder: Path) -> list[str]:
    """Return the paths of `parquet_below` as text."""
    ending, inner = ".parquet", f"{folder}{os.sep}"
    here = {
        f"{inner}{prefix}{name}"
        for prefix, names in walked(folder)
        for name in names
        if name.endswith(ending)
    }
    root, found = _listing(folder)
    there = {f"{root}{os.sep}{name}" for name in found if name.endswith(ending)}
    return [*here | {path for path in there if path.startswith(inner)}]


def stamp(path: Path) -> Stamp:
    """Return size and time of a file that is here, or in its store; FileNotFoundError of others."""
    root, found = _listing(path.parent)
    known = stamp_of(path) or found.get(path.relative_to(root).as_posix() if found else "")
    if known is None:
        raise FileNotFoundError(path)
    return known


def stamped(paths: Iterable[str | Path]) -> list[tuple[str, int, int, int]]:
    """Return what tells many files from what they were: `absolute` name, size and two times.

    The second is when anything of a file was changed, which no program can set back: a writing
    that leaves size and time as they were shows in it, and so do a copy and a further link. Files
    of a store, and copies of them, have none (0). InputError for a file that is gone.
    """
    prefix: dict[str, str | None] = {}
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in prefix:
            prefix[folder] = None if uri_of(folder) is not None else str(Path(folder).absolute())
        known = prefix[folder]
        if known is None:
            found.append((absolute(path), *stamp(Path(path)), 0))
            continue
        try:
            status = os.stat(path)
        except OSError as error:
            raise files.unreadable(path, error, "restore it") from error
        times = status.st_mtime_ns, status.st_ctime_ns
        found.append((f"{known}/{name}", status.st_size, *times))
    return found


def _listing(folder: Path) -> tuple[Path, dict[str, Stamp]]:
    """Return the copy that a folder belongs to, and what is listed of it."""
    if uri_of(folder) is not None:
        for root in (folder, *folder.parents):
            if root == staging():
                break
            if (written := stamp_of(root / LISTING)) is not None:
                with contextlib.suppress(FileNotFoundError):  # all has been copied in between
                    return root, _read(root / LISTING, written)
    return folder, {}


# The stamp is there to be a key: a listing that was written anew is read anew.
@lru_cache(maxsize=4)
def _read(path: Path, _written: Stamp) -> dict[str, Stamp]:
    return {name: (size, time) for name, (size, time) in json.loads(path.read_text()).items()}
