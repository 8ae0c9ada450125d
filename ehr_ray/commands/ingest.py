"""Raw data to a cohort on disk, in this process or as Ray Data tasks."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ehr_ray.errors import InputError
from ehr_ray.events.schema import RECORD
from ehr_ray.runtime.data.tasks import runner
from ehr_ray.sources.building.cohort import (
    IngestSummary,
    check_parts,
    discard_staging,
    fingerprint,
    finish,
    finished,
    staging,
)
from ehr_ray.sources.building.shards import gather
from ehr_ray.sources.building.staging import Plan, scatter
from ehr_ray.sources.source import get_source, make_options
from ehr_ray.sources.splits import parse_splits
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import is_uri, local, named

log = logging.getLogger(__name__)


def ingest(
    source: str,
    input: str | Path | None,
    output: str | Path,
    *,
    splits: str | None = None,
    seed: int = 0,
    max_rejected: float = 0.01,
    options: Mapping[str, object] | None = None,
    cpus: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> IngestSummary:
    """Turn raw data into a cohort at `output`, which appears whole or not at all.

    A job that was killed continues where it stopped when called again, with the same bytes as
    one that was not. A cohort made by the same call before is left as it is.

    Args:
        source: a name in `SOURCES`.
        input: file, folder or URI; None for a source that makes its own data.
        output: folder or URI of the cohort.
        splits: `0.8,0.1,0.1` or `all:held_out`; None keeps the source's own splits and hashes
            the others 0.8,0.1,0.1.
        seed: of the hash that divides subjects.
        max_rejected: share of rows, and of files, that may be bad.
        options: the source's own, by field name or flag, typed or as text.
        cpus: 1 stays in this process, more starts Ray with that many; None decides by size.
        progress: called with one line whenever a piece of work is done.

    Raises:
        InputError: bad arguments, missing or corrupt input, or too many bad rows.
        RunError: a full disk, missing rights or a lost worker.
    """
    started = time.monotonic()
    record = get_source(source)
    chosen = make_options(record, options or {})
    policy = parse_splits(splits, seed)
    if not 0 <= max_rejected <= 1:
        raise InputError(f"--max-rejected {max_rejected}: not a share between 0 and 1")
    given = None if input is None else sync.fetch(input)
    units = record.units(_existing(given, source, record.needs_input), chosen)
    print_, size = fingerprint(record, chosen, policy, units)
    place, output = named(output), local(output).absolute()
    stored = _stored(place)
    done = finished(output, print_)
    if done is not None:
        discard_staging(output)
        if not stored:
            sync.push(output, whole=True)
        progress(f"{output} is already there, made from the same input: nothing to do")
        return done
    sync.mark(output)
    with (
        _failures(output),
        staging(output, print_) as folder,
        # A copy is this machine's alone: tasks elsewhere could not write to it.
        runner(len(units), size, cpus, progress, "local" if is_uri(place) else None) as run,
    ):
        plan = Plan(source, chosen, policy, folder)
        run("read", [partial(scatter, plan, i, unit) for i, unit in enumerate(units)])
        shards = check_parts(plan, len(units), max_rejected)
        relative = record.relative_time(chosen)
        run("wrote", [partial(gather, plan, shard, len(units), relative) for shard in shards])
        progress("fitting codes on train")
        summary = finish(plan, record, shards, len(units), output, print_)
    sync.push(output, whole=True)
    return replace(summary, seconds=time.monotonic() - started)


def _stored(place: str) -> bool:
    """Whether a URI holds a whole cohort, whose record is copied here to be compared with.

    One whose writing was interrupted does not count, and its copy here is left as it is.
    """
    if not is_uri(place) or sync.unfinished(place):
        return False
    sync.fetch(place, only=(RECORD.as_posix(),), missing_ok=True)
    names = sync.names_in(place)
    if names and RECORD.as_posix() not in names:
        raise InputError(f"--output {place}: holds something else; choose another place")
    return bool(names)


@contextlib.contextmanager
def _failures(output: Path) -> Iterator[None]:
    """Turn a full disk, missing rights or a lost worker into one line."""
    try:
        yield
    except OSError as error:
        raise files.failed(f"--output {output}", error) from error


def _existing(path: Path | None, source: str, needed: bool) -> Path:
    if path is None:
        if needed:
            raise InputError(f"--source {source} reads files: say where by --input PATH")
        return Path()
    if not path.exists():
        raise InputError(f"--input {path}: no such file or folder; check the path")
    return path.absolute()
