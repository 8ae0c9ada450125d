"""No tests: waiting for what another process or thread does."""

import time

GUARD_SECONDS = 1200
"""A guard against waiting for ever: a busy machine is no defect."""


def wait_until(done, said=lambda: None, seconds=GUARD_SECONDS):
    """Wait until `done()` is true; a test that waits too long fails with what `said()` returns."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)
