"""Who may change what is at a path among the copies of this machine, one at a time."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

from ehr_ray.storage.lock import exclusive_lock
from ehr_ray.storage.paths import local, staging, uri_of

_holding = threading.local()
"""Of each thread: the `paths` that it holds."""


@contextlib.contextmanager
def held(target: Path) -> Iterator[None]:
    """Let one process at a time, of this machine, make what is to be at a path.

    A thread that holds it already goes on.
    """
    mine: set[Path] = _holding.__dict__.setdefault("paths", set())
    if target in mine:
        yield
        return
    staging().mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(str(target).encode()).hexdigest()[:32]
    with exclusive_lock(staging() / ".locks" / name):
        mine.add(target)
        try:
            yield
        finally:
            mine.discard(target)


def unsent(location: str | Path) -> contextlib.AbstractContextManager[None]:
    """Keep what the block writes to a copy, and pushes, from a `fetch` between both.

    That would remove, as gone from the store, what is not there yet. Of paths nothing is done.
    """
    return contextlib.nullcontext() if uri_of(location) is None else held(local(location))
