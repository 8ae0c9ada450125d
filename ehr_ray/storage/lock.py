"""One writer a run: a lock that goes with its process, however that ends."""

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from ehr_ray.errors import RunError

PATIENCE_SECONDS = 60.0
"""Workers of a killed driver live on for some seconds; a new run waits for them."""


@contextlib.contextmanager
def exclusive_lock(run: Path) -> Iterator[None]:
    """Hold the run directory; RunError if another process still holds it after a minute."""
    run.mkdir(parents=True, exist_ok=True)
    with (run / ".lock").open("w") as file:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunError(
                        f"{run}: another process is training this run; wait, or use another name"
                    ) from None
                time.sleep(0.2)
        yield
