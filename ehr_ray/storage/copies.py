"""Who may change what is at a path among the copies of this machine, one at a time."""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from ehr_ray.storage.lock import exclusive_lock, is_locked, shared_lock
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


@contextlib.contextmanager
def sent_above(target: Path) -> Iterator[None]:
    """Wait until others have sent what they write to a folder that a path is in.

    None begins to in the block. What this thread has yet to send is not waited for.
    """
    with contextlib.ExitStack() as stack:
        for file in _written(target.parents, staging()):
            if file not in _locks():
                stack.enter_context(shared_lock(file))
        yield


def unsent_below(target: Path) -> Callable[[Path], bool]:
    """Return what tells whether another writes a path to send it, at the target or below it.

    Another thread than this one, or process of this machine, is in a block of `unsent` then.
    """
    mine = _locks()

    def ask(path: Path) -> bool:
        files = _written((path, *path.parents), target)
        return any(file not in mine and is_locked(file) for file in files)

    return ask


def _written(folders: Iterable[Path], within: Path) -> Iterator[Path]:
    """Yield the lock files of those of the folders that have ever been written to send them."""
    for folder in folders:
        if folder.is_relative_to(within) and (file := _lock_file(folder, _WRITES)).exists():
            yield file


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
