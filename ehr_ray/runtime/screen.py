"""What a person sees while a verb runs: lines that stay, and one that the next replaces."""

import os
import sys
import time

from ehr_ray.storage.paths import with_uris

TOLD_SECONDS = 60.0
"""Between passing lines that are kept in a log, which shows that something goes on."""


class Screen:
    """One line a message on standard error; steps overwrite each other on a terminal."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._open = False
        self._step = 0
        self._began = (0, 0.0)
        self._told = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        print(with_uris(text), file=sys.stderr, flush=True)

    def starting(self, verb: str) -> None:
        """Give a sign of life on a terminal before imports that take seconds.

        None where they are done already: a process that has one of them was here before, or is
        another program's. A log gets none: there an error stays the one line it is.
        """
        if self._tty and not sys.modules.keys() & {"ray", "torch"}:
            self.passing(f"{verb}: starting, a few seconds")

    def passing(self, text: str) -> None:
        """Show a line that the next one replaces; where output is no terminal, one a minute."""
        if self._tty:
            # A terminal that was not told its size has 0 columns.
            width = (os.get_terminal_size(sys.stderr.fileno()).columns or 80) - 1
            sys.stderr.write(f"\r\x1b[K{text[:width]}")
            sys.stderr.flush()
            self._open = True
        elif time.monotonic() - self._told >= TOLD_SECONDS:
            self._told = time.monotonic()
            self.say(text)

    def step(self, step: int, total: int) -> None:
        """Show how far a training is and, from its pace since the first call, the time left."""
        now = time.monotonic()
        if step <= self._step or self._step == 0:  # another run, or one that went back
            self._began = step, now
        self._step = step
        if not self._tty:
            return
        from tqdm import tqdm

        first, since = self._began
        self.passing(
            tqdm.format_meter(
                step, total, now - since, ncols=80, initial=first, unit=" steps", prefix="training"
            )
        )

    def _clear(self) -> None:
        if self._open:
            sys.stderr.write("\r\x1b[K")
            self._open = False
