"""Progress of workers on the driver's screen: rank 0 writes a small file, the driver follows it."""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ehr_ray.errors import RunError, UserError
from ehr_ray.storage import sync
from ehr_ray.storage.paths import uri_of, with_uris

EVERY_SECONDS = 1.0
AWAY_SECONDS = 3.0
"""Between looks at the progress of a worker on another machine, stored with each report."""


class ProgressFile:
    """Appends one JSON line per report, and per second of steps."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._last = 0.0
        self.begun = path.is_file() and path.stat().st_size > 0
        """Whether another process has written to it before, for the same run of the driver."""

    def step(self, step: int, total: int) -> None:
        """Note that a step is done."""
        now = time.monotonic()
        if now - self._last >= EVERY_SECONDS:
            self._last = now
            self._write({"step": step, "total": total})

    def report(self, row: Mapping[str, float]) -> None:
        """Note a report."""
        self._write({"report": dict(row)})

    def lines(self, lines: list[str]) -> None:
        """Note lines to show as they are."""
        self._write({"lines": lines})

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Screen:
    """One line a message on standard error; steps overwrite each other on a terminal."""

    def __init__(self) -> None:
        self._tty = sys.stderr.isatty()
        self._open = False

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        print(with_uris(text), file=sys.stderr, flush=True)

    def passing(self, text: str) -> None:
        """Show a line that the next one replaces; nothing where output is not a terminal."""
        if self._tty:
            width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
            sys.stderr.write(f"\r\x1b[K{text[:width]}")
            sys.stderr.flush()
            self._open = True

    def _clear(self) -> None:
        if self._open:
            sys.stderr.write("\r\x1b[K")
            self._open = False


@contextlib.contextmanager
def following(path: Path, screen: Screen) -> Iterator[None]:
    """Show what is appended to a progress file while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sync.remove(path)
    path.write_text("")
    stop = threading.Event()
    news = _News(path)

    def follow() -> None:
        ending = False
        while not ending:
            ending = stop.is_set()
            for line in news.lines(ending):
                _show(json.loads(line), screen)
            stop.wait(0.2)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
        with contextlib.suppress(UserError, RunError):  # of the run itself there may be a worse one
            sync.remove(path)


class _News:
    """What is appended to a progress file here, or, by a worker elsewhere, to its URI."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._here = self._there = 0
        self._asked = time.monotonic()

    def lines(self, ending: bool) -> list[bytes]:
        """Return what is new; `ending`: look everywhere, it is the last time."""
        found = b""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._here)
            found = file.read()
            found = found[: found.rfind(b"\n") + 1]
            self._here += len(found)
        late = ending or time.monotonic() - self._asked > AWAY_SECONDS
        if not self._here and late and uri_of(self._path) is not None:
            self._asked = time.monotonic()
            with contextlib.suppress(UserError, RunError):  # shown later, or by the run itself
                found, self._there = sync.tail(self._path, self._there)
        return found.splitlines()


def _show(entry: Mapping[str, Any], screen: Screen) -> None:
    if "lines" in entry:
        for line in entry["lines"]:
            screen.say(line)
    elif "report" in entry:
        screen.say(describe(entry["report"]))
    else:
        screen.passing(f"step {entry['step']}/{entry['total']}")


def describe(row: Mapping[str, float]) -> str:
    """Return a report as one line: where, how long, the objective and the terms."""
    parts = [f"epoch {row['epoch']:<6.4g} step {int(row['step']):<7d} {row['seconds']:7.1f} s"]
    for prefix in ("train", "val"):
        terms = {k[len(prefix) + 1 :]: v for k, v in row.items() if k.startswith(f"{prefix}/")}
        if terms:
            text = " ".join(f"{name} {value:.4g}" for name, value in terms.items())
            parts.append(f"{prefix}: {text}")
    return "  ".join(parts)
