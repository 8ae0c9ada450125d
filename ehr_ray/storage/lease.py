"""One machine at a time trains a run in a store: a claim beside it, renewed while it trains.

An ingest holds the place of its cohort in the same way.

pyarrow writes to no store on a condition (of S3 measured with 25.0: `If-None-Match` among an
object's metadata is dropped; for Google it has no option), so no machine writes over another's.
Each has a claim of its own, an object in the run's `.lease` folder, and holds the run when one list
of that folder shows its claim and no other. Of two that ask at once each lists after it has
written, so one at least sees the other; the one with the greater name withdraws, and the other
waits until it has (the one-bit algorithm of Burns and Lamport). That guards any two starts, however
close, where a list shows what was written before it: S3 since 2020, Google, MinIO, a disk.

Age is told by the times that the store gives objects, no clocks of machines are compared. A claim
older than `EXPIRY` is dead, and so is one of this user on this machine whose process has ended; who
asks removes it. A machine that was away for so long (asleep, cut off from the store) asks anew at
its next renewal where its claim is still there. Where it was removed the run is lost, whether or
not anybody holds it by then: who took it over may have trained it and left. Before each report is
stored the claim is looked for; without it the training ends with `LeaseLostError`. What that
leaves: a report, or a renewal, already on its way when the machine stalls for longer than `EXPIRY`
may arrive after the run was taken over.
"""

import contextlib
import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow.fs as pafs

from ehr_ray.errors import (
    LeaseHeldError,
    LeaseLostError,
    RunError,
    StoreUnavailableError,
    UserError,
)
from ehr_ray.storage import files
from ehr_ray.storage.object_stores import explained, filesystem
from ehr_ray.storage.paths import uri_of
from ehr_ray.storage.processes import machine, started

FOLDER: Final = ".lease"
EXPIRY: Final = 60.0
"""Seconds without a renewal after which a machine counts as dead."""
RENEWAL: Final = 15.0
"""Seconds between renewals, so that three may fail."""
POLL: Final = 2.0
"""Seconds between looks at the claim of another machine."""
READS: Final = 4
"""Times a claim is read before it counts as unreadable, or as one that asks."""
STOP: Final = 5.0
"""Seconds that a renewal on its way is waited for at the end."""
ASKS, HOLDS = "asks", "holds"


@dataclass(frozen=True)
class Lease:
    """The right to write a run in a store; picklable, and checked from any machine."""

    run: str
    """URI of the run."""
    name: str
    """The claim's, in the run's `.lease` folder."""

    def check(self) -> None:
        """Raise LeaseLostError where the claim has gone.

        StoreUnavailableError where the store cannot tell, or the lease is being asked for anew.
        """
        for _ in range(READS):
            with explained(self.run):
                claims = Claims(self.run)
                found = {name: claims.read(name) for name in claims.times()}
            own = found.pop(self.name, None)
            if own is None or own.get("state") == HOLDS:
                break
            time.sleep(POLL / 2)  # it asks anew after it was away
        holders = [about for about in found.values() if about.get("state") == HOLDS]
        if own is None or holders:
            raise LeaseLostError(
                f"{self.run}: {_who(holders[0] if holders else {})} took over this run, as its "
                f"lease here was not renewed for {EXPIRY:g} seconds; what was not stored by then "
                "is not kept"
            )
        if own.get("state") != HOLDS:
            raise StoreUnavailableError(f"{self.run}: its lease is asked for anew")


@contextlib.contextmanager
def leased(run: str | Path, say: Callable[[str], None]) -> Iterator[Lease | None]:
    """Hold a run in a store for the length of the block; of paths, None, and nothing is done.

    A thread renews the lease. It is no part of what trains: a store that does not answer is asked
    again, for as long as the training lives. However the block ends the lease is given back.

    Args:
        run: URI of a run, or the path of its copy.
        say: told, once, that the claim of a machine that may be dead is waited for.

    Raises:
        LeaseHeldError: another machine trains the run, seen by its next renewal.
        RunError: no store answers.
        InputError: no such bucket, or no access to it.
    """
    uri = uri_of(run)
    if uri is None:
        yield None
        return
    claim = Claim(uri)
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(RENEWAL):
            try:
                claim.renew()
            except LeaseLostError:  # told by `check`, where the next report is stored
                return
            except (UserError, RunError):
                continue

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    try:
        claim.take(say)
        thread.start()
        yield Lease(uri, claim.name)
    finally:
        stop.set()
        if thread.is_alive():
            thread.join(STOP)
        with contextlib.suppress(UserError, RunError):  # then it expires
            claim.withdraw()


class Claims:
    """The claims on a run."""

    def __init__(self, uri: str) -> None:
        self._store, path = filesystem(uri)
        self._path = f"{path}/{FOLDER}"

    def times(self) -> dict[str, float]:
        """Return when each claim was last written, in seconds of the store's clock."""
        selector = pafs.FileSelector(self._path, allow_not_found=True)
        return {
            info.base_name: info.mtime_ns / 1e9
            for info in self._store.get_file_info(selector)
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        }

    def read(self, name: str) -> dict[str, Any]:
        """Return what a claim says; {} where it has gone meanwhile, or says nothing.

        It is read again where it may have been replaced while it was read: by another size, too.
        """
        for attempt in range(READS):
            try:
                with self._store.open_input_file(f"{self._path}/{name}") as file:
                    content = json.loads(file.read())
                return content if isinstance(content, dict) else {}
            except FileNotFoundError:
                return {}
            except (OSError, ValueError) as error:
                if attempt == READS - 1 and isinstance(error, OSError):
                    raise
        return {}

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a claim, at once."""
        text, path = json.dumps(content), f"{self._path}/{name}"
        if self._store.type_name == "local":
            files.write_text(Path(path), text)
            return
        with self._store.open_output_stream(path) as stream:
            stream.write(text.encode())

    def remove(self, name: str) -> None:
        """Remove a claim, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._store.delete_file(f"{self._path}/{name}")


class Claim:
    """This program's claim on a run."""

    def __init__(self, uri: str) -> None:
        self._uri, self.name = uri, secrets.token_hex(8)
        self._about: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "user": _user(),
            "machine": machine(),
            "started": started(os.getpid()),
        }
        self._writing, self._withdrawn = threading.Lock(), False
        self._asks_anew = False

    def take(self, say: Callable[[str], None]) -> None:
        """Hold the run once nobody else does; RunError where somebody is seen to live."""
        seen: dict[str, float] = {}
        deadline = time.monotonic() + 2 * EXPIRY
        with explained(self._uri):
            claims = Claims(self._uri)
            while others := self._ask(claims):
                before = self._before(others)
                if before:
                    claims.remove(self.name)
                for name, about in others.items():
                    renewed = about["time"] != seen.get(name, about["time"])
                    here = self._is_here(about) and _lives(about)
                    alive = about["state"] == HOLDS and (renewed or here)
                    if alive or time.monotonic() > deadline:
                        raise LeaseHeldError(
                            f"{self._uri}: {_who(about)} trains this run; wait until it has ended, "
                            "or give this one another name",
                            _who(about),
                        )
                    if name not in seen and about["state"] == HOLDS:
                        say(f"{self._uri}: waiting to see whether {_who(about)} still writes there")
                    seen.setdefault(name, about["time"])
                time.sleep(POLL if before else POLL / 4)
            self.write(claims, HOLDS)

    def renew(self) -> None:
        """Renew the claim; LeaseLostError where it has gone, or another holds the run."""
        with explained(self._uri):
            claims = Claims(self._uri)
            before = self._own(claims.times())
            if not self._asks_anew:  # else the store went away before all was asked
                self.write(claims, HOLDS)
                # Half the age of a dead claim: who takes this one for dead may have just written.
                if self._own(claims.times()) - before <= EXPIRY / 2:
                    return
            self._asks_anew = True
            while others := self._ask(claims, anew=True):
                if self._before(others):
                    claims.remove(self.name)
                    raise self._lost()
                time.sleep(POLL / 4)  # those that ask withdraw, or are dead
            self.write(claims, HOLDS)
            self._asks_anew = False

    def withdraw(self) -> None:
        """Give the run back; from now on nothing is written."""
        self._withdrawn = True
        if self._writing.acquire(timeout=STOP):  # else who writes sees it when it has written
            self._writing.release()
        with explained(self._uri):
            Claims(self._uri).remove(self.name)

    def write(self, claims: Claims, state: str) -> None:
        """Write this claim, unless it was withdrawn; then LeaseLostError, and none is left."""
        with self._writing:
            if not self._withdrawn:
                claims.write(self.name, {**self._about, "state": state})
        if self._withdrawn:
            claims.remove(self.name)
            raise LeaseLostError(f"{self._uri}: its lease was given back")

    def _own(self, times: dict[str, float]) -> float:
        """Return when this claim was written; LeaseLostError without it."""
        if self.name not in times:
            raise self._lost()
        return times[self.name]

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(f"{self._uri}: another machine took over this run")

    def _ask(self, claims: Claims, *, anew: bool = False) -> dict[str, dict[str, Any]]:
        """Write this claim, remove dead ones, and return the others, with the `time` of each.

        `anew`, of a run that was held: LeaseLostError where this claim has gone.
        """
        while True:
            if anew:
                self._own(claims.times())
            self.write(claims, ASKS)
            times = claims.times()
            if anew:
                self._own(times)
            if self.name in times:  # else it was taken for dead meanwhile
                break
        now, others = times.pop(self.name), {}
        since = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        self._about.setdefault("since", since)
        for name, written in times.items():
            about = claims.read(name)
            # A system may hide the processes of other users: those are dead when they expire.
            own = self._is_here(about) and about.get("user") == self._about["user"]
            if now - written > EXPIRY or (own and not _lives(about)):
                claims.remove(name)
            else:
                others[name] = {"state": ASKS, **about, "time": written}
        return others

    def _before(self, others: dict[str, dict[str, Any]]) -> bool:
        """Whether one of them holds the run, or asks for it under a smaller name."""
        return any(a["state"] == HOLDS or name < self.name for name, a in others.items())

    def _is_here(self, about: dict[str, Any]) -> bool:
        """Whether a claim is that of a process of this machine, ended or not."""
        return bool(about.get("machine")) and about["machine"] == self._about["machine"]


def _who(about: dict[str, Any]) -> str:
    """Return how a person finds who wrote a claim."""
    if "host" not in about:
        return "another machine"
    since = f", since {about['since']}" if "since" in about else ""
    return f"{about['host']} (process {about.get('pid')} of {about.get('user')}{since})"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an id without a name, as in containers
        return str(os.getuid())


def _lives(about: dict[str, Any]) -> bool:
    """Whether the process of a claim of this machine is seen, and not another of its number."""
    return started(int(about.get("pid", 0))) == about.get("started")
