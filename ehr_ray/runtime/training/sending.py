"""The reports of a run to its store, beside the steps that follow them."""

import contextlib
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ehr_ray.errors import LeaseLostError, RunError, StoreUnavailableError, UserError
from ehr_ray.storage import runs, sync
from ehr_ray.storage.lease import EXPIRY, Lease
from ehr_ray.storage.paths import uri_of
from ehr_ray.train.checkpoint import saved_progress

RETRY: Final = 2.0
"""Seconds between tries to store the end of a run, which go on for `EXPIRY`."""


class Sender:
    """Writes what a run has saved to its URI, of one report at a time, in a thread of its own.

    A report is sent when the one before it has arrived, so that a crash loses one at most, and
    training waits for the store only where a report takes longer than the steps to the next one.
    """

    def __init__(self, run: Path, progress: Path, lease: Lease | None) -> None:
        self._run, self._progress, self._lease = run, progress, lease
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None
        self._arrived = True

    def send(self) -> str:
        """Begin to send what the run has saved; return why the report before was not stored, or "".

        What was not stored then is part of what is sent now. Raises LeaseLostError where another
        machine trains the run by now.
        """
        if uri_of(self._run) is None:
            return ""
        problem = self._last_problem()
        try:
            source = runs.snapshot(self._run)
        except OSError:  # no hard links here: the next report would change files on their way
            self._push(self._run)
            return problem or self._last_problem()
        self._progress_to(source)
        self._thread = threading.Thread(target=self._push, args=(source,), name="sending")
        self._thread.daemon = True
        self._thread.start()
        return problem

    def wait(self) -> bool:
        """Wait for the report that is on its way; return whether the last one has arrived.

        Raises LeaseLostError where another machine trains the run by now.
        """
        self.join()
        if isinstance(self._problem, LeaseLostError):
            raise self._problem
        return self._arrived

    def join(self) -> None:
        """Wait until the report that is on its way has arrived, or has failed to."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Send all that the run has saved, at its end; what the store refuses is raised.

        A store that does not answer is asked again for `EXPIRY` seconds: what was trained since
        the last report is nowhere else.
        """
        if uri_of(self._run) is None:
            return
        self._last_problem()  # tried again now
        deadline = time.monotonic() + EXPIRY
        while True:
            try:
                self._store()
                break
            except StoreUnavailableError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY)
        with contextlib.suppress(UserError, RunError):  # lines for the screen alone
            sync.push(self._progress)

    def _store(self, source: Path | None = None) -> None:
        if self._lease is not None:
            self._lease.check()  # first: what another machine has stored by now is not written over
        runs.push_run(self._run, source)

    def _last_problem(self) -> str:
        self.join()
        problem, self._problem = self._problem, None
        if problem is None:
            return ""
        if isinstance(problem, LeaseLostError) or not isinstance(problem, (UserError, RunError)):
            raise problem
        return str(problem)

    def _progress_to(self, source: Path) -> None:
        """Copy the lines for the screen, which grow at every step."""
        with contextlib.suppress(OSError):  # a full disk shows at the next report
            shutil.copyfile(self._progress, source / self._progress.name)

    def _push(self, source: Path) -> None:
        self._arrived = False
        try:
            self._store(source)
            self._arrived = True
            lines = source / self._progress.name
            if lines.is_file():
                sync.push(self._progress, source=lines)
        except Exception as error:  # raised in the thread that trains, where it asks
            self._problem = error


@contextlib.contextmanager
def sending(run: Path, progress: Path, lease: Lease | None) -> Iterator[Sender]:
    """Yield the sender of a run; however the block ends, a report on its way arrives first.

    Nothing of what it was sent from is left then.
    """
    sender = Sender(run, progress, lease)
    try:
        yield sender
    finally:
        sender.join()
        if uri_of(run) is not None:
            shutil.rmtree(run / runs.SENDING, ignore_errors=True)


def saved_step(run: str | Path) -> int:
    """Return the step of a run's last state where it is kept, in its store or here; 0 without one.

    Of a run in a store the copy here is that of its begin: other machines write the states. Where
    the store does not answer there is none.
    """
    if uri_of(run) is None:
        progress = saved_progress(Path(run))
        return progress.step if progress else 0
    with contextlib.suppress(UserError, RunError):
        states = map(re.compile(rf"state/(\d+)/{sync.LAST[-1]}").fullmatch, sync.names_in(run))
        return max((int(state[1]) for state in states if state), default=0)
    return 0
