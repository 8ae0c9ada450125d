"""No tests: waiting for what another process or thread does."""

import time

GUARD_SECONDS = 1200
"""A guard against waiting for ever: a busy machine is no defect."""


def wait_until(done, said=lambda: None):
    """Wait until `done()` is true; a test that waits too long fails with what `said()` returns."""
    deadline = time.monotonic() + GUARD_SECONDS
    while not done():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)
