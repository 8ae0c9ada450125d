"""The reports of a run to its store, beside the steps that follow them."""

import contextlib
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from ehr_ray.errors import LeaseLostError, RunError, UserError
from ehr_ray.storage import sync
from ehr_ray.storage.lease import Lease
from ehr_ray.storage.paths import uri_of
from ehr_ray.train.checkpoint import saved_progress


class Sender:
    """Writes what a run has saved to its URI, of one report at a time, in a thread of its own.

    A report is sent when the one before it has arrived, so that a crash loses one at most, and
    training waits for the store only where a report takes longer than the steps to the next one.
    """

    def __init__(self, run: Path, progress: Path, lease: Lease | None) -> None:
        self._run, self._progress, self._lease = run, progress, lease
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None

    def send(self) -> str:
        """Begin to send what the run has saved; return why the report before was not stored, or "".

        What was not stored then is part of what is sent now. Raises LeaseLostError where another
        machine trains the run by now.
        """
        if uri_of(self._run) is None:
            return ""
        problem = self._last_problem()
        try:
            source = sync.snapshot(self._run)
        except OSError:  # no hard links here: the next report would change files on their way
            self._push(self._run)
            return problem or self._last_problem()
        self._progress_to(source)
        self._thread = threading.Thread(target=self._push, args=(source,), name="sending")
        self._thread.daemon = True
        self._thread.start()
        return problem

    def wait(self) -> None:
        """Wait until the report that is on its way has arrived, or has failed to."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Send all that the run has saved, at its end; what the store refuses is raised."""
        if uri_of(self._run) is None:
            return
        self._last_problem()  # tried again now
        if self._lease is not None:
            self._lease.check()
        sync.push_run(self._run)
        shutil.rmtree(self._run / sync.SENDING, ignore_errors=True)
        with contextlib.suppress(UserError, RunError):  # lines for the screen alone
            sync.push(self._progress)

    def _last_problem(self) -> str:
        self.wait()
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
        try:
            if self._lease is not None:
                self._lease.check()
            sync.push_run(self._run, source)
            lines = source / self._progress.name
            if lines.is_file():
                sync.push(self._progress, source=lines)
        except Exception as error:
            self._problem = error


@contextlib.contextmanager
def sending(run: Path, progress: Path, lease: Lease | None) -> Iterator[Sender]:
    """Yield the sender of a run; however the block ends, a report on its way arrives first."""
    sender = Sender(run, progress, lease)
    try:
        yield sender
    finally:
        sender.wait()


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
