"""Who may change what is at a path among the copies of this machine, one at a time."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ehr_ray.storage.lock import exclusive_lock, is_locked
from ehr_ray.storage.paths import local, staging, uri_of

_MAKES: Final = ""
_WRITES: Final = ".unsent"
_holding = threading.local()
"""Of each thread: the `locks` that it holds."""


def held(target: Path) -> contextlib.AbstractContextManager[None]:
    """Let one process at a time, of this machine, make what is to be at a path.

    A thread that holds it already goes on.
    """
    return _held(_lock_file(target, _MAKES))


@contextlib.contextmanager
def unsent(location: str | Path) -> Iterator[None]:
    """Keep what the block writes at a copy, or below it, and pushes, from any `fetch` between both.

    That would remove, as gone from the store, what is not there yet, or bring back what was before.
    Of paths nothing is done.
    """
    if uri_of(location) is None:
        yield
        return
    target = local(location)
    with held(target), _held(_lock_file(target, _WRITES)):
        yield


def is_unsent(path: Path) -> bool:
    """Whether another thread, or process of this machine, is in a block of `unsent` that has it."""
    mine, root = _locks(), staging()
    around = (folder for folder in (path, *path.parents) if folder.is_relative_to(root))
    files = (_lock_file(folder, _WRITES) for folder in around)
    return any(file not in mine and file.exists() and is_locked(file) for file in files)


@contextlib.contextmanager
def _held(file: Path) -> Iterator[None]:
    mine = _locks()
    if file in mine:
        yield
        return
    staging().mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive_lock(file):
        mine.add(file)
        try:
            yield
        finally:
            mine.discard(file)


def _locks() -> set[Path]:
    found: set[Path] = _holding.__dict__.setdefault("locks", set())
    return found


def _lock_file(target: Path, kind: str) -> Path:
    name = hashlib.sha256(str(target).encode()).hexdigest()[:32]
    return staging() / ".locks" / f"{name}{kind}"
