"""An ingest that begins, goes on or was done before: by what it is known, and where its work lies.

Its fingerprint names the staging folder, which a killed ingest finds again, and stands in the
record of the cohort, by which a finished one is.

<parent>/.<name>.staging-<fingerprint>-6/parts/      one folder a unit (staging.py)
                                         cohort/     renamed to <parent>/<name> when complete
                                         subjects/   one table a shard (shards.py)
                                         ranges/     tables by ranges of subjects (ranges.py)
                                         codes/      what shards hold, and manifest/ (statistics.py)
                                         unpacked/   large compressed files (unpacking.py)
                                         splits.arrow  whom --splits or --split-by puts where

Where the output is a URI, that folder is one of its store, and so outlives the machine; what this
one has of it lies where the copy of the URI does (sharing.py).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ehr_ray.errors import AwayError, InputError, StoreUnavailableError
from ehr_ray.events.schema import ORIGIN_CODES, RECORD
from ehr_ray.sources.building.changes import told
from ehr_ray.sources.building.metadata import TaskSummary
from ehr_ray.sources.source import Source, Unit
from ehr_ray.sources.splits import NUM_BUCKETS, SplitPolicy, buckets_for
from ehr_ray.storage import in_place, sync
from ehr_ray.storage.lock import exclusive_lock
from ehr_ray.storage.paths import canonical, uri_of

LAYOUT: Final = 5
"""Bump when the same input would give other bytes: staged work of older versions is not reused.

Last digits of `mean` and `std` do not count: a finished cohort would be refused for them."""

STAGING: Final = 6
"""Bump when staged work is written in another form: that of older versions is not read."""


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest made.

    Args:
        cohort: the finished folder.
        subjects: number of subjects by split.
        events: rows of all shards.
        rows_read: rows seen in the input.
        rejected_rows: rows in `rejected.parquet`.
        rejected_files: files in it.
        labels: by task.
        labels_without_subject: labels dropped because no event came with them.
        changes: kind of change -> how much was read otherwise than it stood.
        left_out: subjects without a row in the table of `--splits`, under `--unlisted drop`.
        notes: lines on how subjects were divided, where that was not as asked or as expected.
        reused: whether the cohort was already there.
        seconds: wall time.
    """

    cohort: Path
    subjects: dict[str, int]
    events: int
    rows_read: int
    rejected_rows: int
    rejected_files: int
    labels: dict[str, TaskSummary]
    labels_without_subject: int
    changes: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    notes: tuple[str, ...] = ()
    reused: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return a few lines for the screen."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.subjects.items())
        done = "already there" if self.reused else f"in {self.seconds:.1f} s"
        lines = [
            f"{self.cohort}: {sum(self.subjects.values()):,} subjects ({splits}), "
            f"{self.events:,} events, {done}",
            f"rejected {self.rejected_rows:,} of {self.rows_read:,} rows and "
            f"{self.rejected_files:,} files (metadata/rejected.parquet)",
        ]
        lines += told(self.changes)
        lines += self.notes
        lines += [f"task {task}: {summary}" for task, summary in self.labels.items()]
        if self.labels_without_subject:
            lines.append(f"{self.labels_without_subject:,} labels dropped: no events for them")
        return "\n".join(lines)


def fingerprint(
    source: Source,
    options: Any,
    policy: SplitPolicy,
    units: Iterable[Unit],
    origin: Sequence[str] = ORIGIN_CODES,
    treatment: tuple[str, ...] = (),
) -> tuple[str, int]:
    """Return (hash of everything that decides the bytes, bytes of input).

    `treatment` says what is done to values and to repeats of rows. Files count by name, size and
    time of change, not by place: an input may be moved. Databases count by their units' `state`.
    """
    digest = hashlib.sha256(
        json.dumps(
            [
                LAYOUT,
                source.name,
                dataclasses.asdict(options),
                dataclasses.astuple(policy),
                origin,
                treatment,
            ],
            default=_named,
        ).encode()
    )
    size = 0
    shared = {(unit.root, name) for unit in units if not unit.state for name in unit.uses}
    given = (*vars(options).values(), policy.file)
    shared |= {("", str(v)) for v in given if isinstance(v, Path)}
    for root, name in sorted(shared):
        _stat(digest, root, name)
    sizes: dict[tuple[str, str], int] = {}  # a file in several units counts once
    for unit in units:
        digest.update(repr((unit.kind, unit.split, unit.start, unit.stop)).encode())
        digest.update(unit.state.encode())
        size += unit.size
        for name in () if unit.state else unit.files:
            sizes[unit.root, name] = _stat(digest, unit.root, name)
    size += sum(sizes.values())
    if (buckets := buckets_for(size)) != NUM_BUCKETS:  # which sizes of databases may change
        digest.update(repr(buckets).encode())
    return digest.hexdigest()[:16], size


def _named(value: object) -> str:
    """Return the name of a path that is the same on every machine, and of all else its text."""
    return canonical(value) if isinstance(value, Path) else str(value)


def _stat(digest: Any, root: str, name: str) -> int:
    path = os.path.join(root, name)
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; check the path") from None
    name = name if root else _named(Path(name))
    digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return status.st_size


def finished(output: Path, print_: str) -> IngestSummary | None:
    """Return the summary of a cohort made by the same ingest, None where nothing is there.

    Anything else at `output` is an `InputError`.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        record = json.loads((output / RECORD).read_text())
        same, summary = record["fingerprint"] == print_, dict(record["summary"])
        labels = {task: TaskSummary(**value) for task, value in summary.pop("labels").items()}
        summary["notes"] = tuple(summary.get("notes", ()))
        done = IngestSummary(cohort=output, labels=labels, reused=True, **summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same, record = False, None
    if not same:
        what = "another input or other options" if record else "something else"
        raise InputError(f"--output {output}: holds {what}; remove it or choose another folder")
    return done


def has_changed(cohort: Path, kind: str) -> bool:
    """Whether ingest read anything otherwise in this way, as the record in a cohort says."""
    path = cohort / RECORD
    if not path.is_file():
        return False
    summary = json.loads(path.read_text()).get("summary", {})
    return bool(summary.get("changes", {}).get(kind))


@contextlib.contextmanager
def staging(output: Path, print_: str) -> Iterator[Path]:
    """Hold the staging folder of an ingest; drop it on bad input, keep it whatever else ends it.

    An input that is away, as a share for a moment, or that a token no longer opens, is not bad: the
    same command goes on. Staging of other fingerprints for the same output is removed. Raises
    `InputError` while another process of this machine is ingesting into the same output.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}; choose another folder") from None
    folder = output.with_name(f".{output.name}.staging-{print_}-{STAGING}")
    discard_staging(output, keep=folder)
    folder.mkdir(exist_ok=True)
    with _lock(folder, output):
        remove_unfinished(folder)
        try:
            yield folder
        except InputError as error:
            if not _is_away(error) or _is_empty(folder):
                _remove(folder)
            raise
        _remove(folder)


def _is_away(error: BaseException | None) -> bool:
    """Whether an input could not be read, in place of being read and found bad."""
    while error is not None:
        if isinstance(error, AwayError) or (isinstance(error, OSError) and error.errno is not None):
            return True
        error = error.__cause__ or error.__context__
    return False


def remove_unfinished(folder: Path) -> None:
    """Remove what tasks that were killed had begun to write: their hidden files and folders."""
    for path in [*folder.rglob(".*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _is_empty(folder: Path) -> bool:
    """Whether a staging folder, here or in its store, has no part yet, and no unpacked piece."""
    with contextlib.suppress(InputError, StoreUnavailableError):  # a store that does not say
        return not any(name.count("/") > 1 for name in sync.names_in(folder))
    return False


def _remove(folder: Path) -> None:
    """Remove a folder, here and in a store.

    Other tasks of a job that failed may still write to it for a moment.
    """
    if uri_of(folder) is not None:
        sync.remove(folder)
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(folder)


def discard_staging(output: Path, keep: Path | None = None) -> None:
    """Remove what unfinished ingests into `output` left, but not `keep`."""
    # No pattern of names made of a user's: `[` in one would match another's folder. Nor by the
    # beginning alone: `--output a.staging-b` has folders that begin as those of `a`.
    its = re.compile(rf"\.{re.escape(output.name)}\.staging-[0-9a-f]{{16}}(-\d+)?")
    names = in_place.folders_in(output.parent)
    with contextlib.suppress(OSError):  # no such folder, or one that may not be listed
        names |= {*os.listdir(output.parent)}
    found = {output.with_name(name) for name in names if its.fullmatch(name)}
    for stale in sorted(found - {keep}):
        with _lock(stale, output):
            _remove(stale)


def _lock(folder: Path, output: Path) -> contextlib.AbstractContextManager[None]:
    busy = InputError(f"--output {output}: another ingest is writing it; wait")
    return exclusive_lock(folder / "lock", busy, patience=0)
