"""One process at a time: locks on files that go with their process, however that ends."""

import contextlib
import fcntl
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ehr_ray.errors import RunError
from ehr_ray.storage.paths import PARTS

PATIENCE_SECONDS: Final = 60.0
"""Workers of a killed driver live on for some seconds; a new run waits for them."""
POLL_SECONDS: Final = 0.2
SILENT_SECONDS: Final = 2.0
"""A wait that is longer is told."""
RUN_LOCK: Final = ".run.lock"
"""File in a run directory that the process which trains it holds."""
_OWN: Final[set[Path]] = set()
"""Runs that this process holds."""


@contextlib.contextmanager
def exclusive_lock(
    file: Path,
    busy: Exception | None = None,
    *,
    patience: float = math.inf,
    waiting: Callable[[], object] | None = None,
) -> Iterator[None]:
    """Hold a lock file, which is made with its folder, for the length of the block.

    Args:
        file: what all who exclude each other name; its content means nothing.
        busy: what is raised where another process holds it for longer than `patience`.
        patience: seconds to wait for it; 0 asks once, infinity waits for ever.
        waiting: called once where it has been waited for for `SILENT_SECONDS`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # It is never removed: who has it open would hold a lock on a file that others do not find.
    with file.open("w") as handle:
        began = time.monotonic()
        while True:
            try:
                waits = math.isinf(patience) and waiting is None
                fcntl.flock(handle, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - began
                if waited >= patience:
                    raise busy or RunError(f"{file}: held by another process; wait") from None
                if waiting is not None and waited >= SILENT_SECONDS:
                    waiting()
                    waiting = None
                time.sleep(POLL_SECONDS)
        yield


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold a run directory; RunError if another process still holds it after a minute."""
    with _folder_lock(run, RUN_LOCK):
        _OWN.add(run.absolute())
        try:
            yield
        finally:
            _OWN.discard(run.absolute())


def search_lock(root: Path) -> contextlib.AbstractContextManager[None]:
    """Hold a folder of runs in the same way; each run in it has a lock of its own."""
    return _folder_lock(root, ".search.lock")


def held_by_another(run: Path) -> bool:
    """Whether another process of this machine holds the nearest run that a path is of, or in.

    Not what `evaluate` has in `PARTS` of a run, which is its own.
    """
    for folder in (run, *run.parents):
        if (folder / RUN_LOCK).is_file():
            own = folder.absolute() in _OWN or PARTS in run.relative_to(folder).parts[:1]
            return not own and is_locked(folder / RUN_LOCK)
    return False


@contextlib.contextmanager
def shared_lock(file: Path) -> Iterator[None]:
    """Wait until nobody has the `exclusive_lock` of a file that is there, nor gets it meanwhile."""
    with file.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def is_locked(file: Path) -> bool:
    """Whether somebody holds a lock file, which is there."""
    with file.open() as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _folder_lock(folder: Path, name: str) -> contextlib.AbstractContextManager[None]:
    busy = RunError(f"{folder}: another process is training this run; wait, or use another name")
    return exclusive_lock(folder / name, busy, patience=PATIENCE_SECONDS)
