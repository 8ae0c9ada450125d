"""Progress of workers on the driver's screen: rank 0 writes a small file, the driver follows it."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ehr_ray.errors import RunError, UserError
from ehr_ray.runtime.screen import Screen
from ehr_ray.storage import in_place, sync
from ehr_ray.storage.paths import uri_of

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

    def report(self, row: Mapping[str, float], metric: str) -> None:
        """Note what a person reads of a report: where, how long, the objective, what selects."""
        names = ("epoch", "step", "seconds", "train/objective", "val/objective", metric)
        self._write({"report": {name: row[name] for name in names if name in row}})

    def lines(self, lines: list[str]) -> None:
        """Note lines to show as they are."""
        self._write({"lines": lines})

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


@contextlib.contextmanager
def following(path: Path, screen: Screen) -> Iterator[None]:
    """Show what is appended to a progress file while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sync.remove(path)
    path.write_text("")
    stop = threading.Event()
    news, table = _News(path), Table(screen.say)

    def follow() -> None:
        ending = False
        while not ending:
            ending = stop.is_set()
            for line in news.lines(ending):
                try:
                    entry = json.loads(line)
                except ValueError:  # cut: a process of the same run that was killed wrote too
                    continue
                if "lines" in entry:
                    for text in entry["lines"]:
                        screen.say(text)
                elif "report" in entry:
                    table.add(entry["report"])
                else:
                    screen.step(entry["step"], entry["total"])
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
                found, self._there = in_place.tail(self._path, self._there)
        return found.splitlines()


class Table:
    """The reports of a run, a row each below one header."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._shown: list[str] = []

    def add(self, report: Mapping[str, float]) -> None:
        """Show a report: epoch, step, its other numbers by name, and the seconds trained."""
        names = [name for name in report if name not in ("epoch", "step", "seconds")]
        if names != self._shown:
            self._say(
                "   epoch    step" + "".join(f"{n:>{_width(n)}}" for n in names) + "     time"
            )
            self._shown = names
        values = "".join(f"{report[name]:>{_width(name)}.4g}" for name in names)
        where = f"{report['epoch']:8.4g}{int(report['step']):8d}"
        self._say(f"{where}{values}{report['seconds']:7.0f} s")


def _width(name: str) -> int:
    return max(11, len(name) + 3)
