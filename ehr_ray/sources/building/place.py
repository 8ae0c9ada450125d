"""The place that a cohort is to be in: where it may be, what is there, who alone writes to it."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ehr_ray.errors import InputError, LeaseHeldError, RunError, UserError
from ehr_ray.events.schema import RECORD
from ehr_ray.sources.building.resume import IngestSummary, finished
from ehr_ray.sources.building.sharing import strangers
from ehr_ray.sources.parsing.databases import is_address
from ehr_ray.sources.source import Source
from ehr_ray.storage import files, sync
from ehr_ray.storage.lease import Lease, leased
from ehr_ray.storage.object_stores import lies_in
from ehr_ray.storage.paths import (
    COHORT_FOLDERS,
    canonical,
    inside,
    is_uri,
    join,
    local,
    parts_of,
)


def place_of(output: str | Path, source: Source, given: str | Path | None) -> tuple[str, Path]:
    """Return the one name of the place of a cohort, and where that is, or its copy, here.

    `InputError` for what can be none: a bucket alone, the input itself, or a folder in it of which
    the source `walks` all files, so that the cohort, or its staging folder, would be read as input.
    """
    place, here = canonical(output), local(output).absolute()
    if not is_uri(place):
        here = files.place_of_folder(here)
    elif not parts_of(place)[2]:
        raise InputError(f"--output {place}: names a bucket alone; give a folder in it")
    if given is None or is_address(given):
        return place, here
    if lies_in(given, place) and lies_in(place, given):
        raise InputError(f"--output {place}: is --input itself; choose another folder")
    for folder in (join(given, *filter(None, [name])) for name in source.walks):
        if lies_in(place, folder):
            raise InputError(
                f"--output {place}: lies in --input {folder}, of which it would be read as a part; "
                "choose a folder outside"
            )
    return place, here


def made_before(place: str, here: Path, print_: str) -> IngestSummary | None:
    """Return the summary of the cohort that the same ingest has made, None where none is there.

    `InputError` where something else is there, or where no folder can appear.
    """
    if is_uri(place):
        return finished(here, print_) if _stored(place) else None
    done = finished(here, print_)
    if done is None:
        files.check_replaceable(here, "--output ")
    return done


def _stored(place: str) -> bool:
    """Whether a URI holds a whole cohort, whose record is copied here to be compared with.

    One whose writing was interrupted does not count. `InputError` where something else is there,
    or has come beside one that is not whole.
    """
    interrupted = sync.unfinished(place)
    if not interrupted:
        sync.fetch(join(place, RECORD.as_posix()), missing_ok=True)
    names = sync.names_in(place)
    strange = strangers(names) if interrupted else names
    if strange and (interrupted or RECORD.as_posix() not in names):
        what = min(strange)
        if (first := what.partition("/")[0]) not in COHORT_FOLDERS:
            what = first
        raise InputError(
            f"--output {place}: holds something else, {what or 'a file'}; choose another place"
        )
    return bool(names) and not interrupted


@contextlib.contextmanager
def alone(place: str, output: Path, say: Callable[[str], None]) -> Iterator[Lease | None]:
    """Hold a place in a store, to which no other machine writes then; a folder `staging` guards.

    Nothing is there that is whole; what this machine has of it is removed. It is marked as not
    whole, until it is, or until an error of the input that leaves nothing there.
    """
    try:
        with leased(place, say) as lease:
            if lease is not None:
                if _stored(place):
                    raise InputError(
                        f"--output {place}: another ingest has just made it; run this one again to "
                        "compare"
                    )
                for name in COHORT_FOLDERS:
                    shutil.rmtree(inside(output / name), ignore_errors=True)
                sync.mark(output)
            try:
                yield lease
            except InputError:
                if lease is not None:
                    _unmark(place)
                raise
    except LeaseHeldError as error:
        raise InputError(
            f"--output {place}: {error.holder} is writing it; wait until it has ended, or choose "
            "another place"
        ) from None


def _unmark(place: str) -> None:
    """Remove the mark of an ingest that has ended and left no file of a cohort."""
    with contextlib.suppress(UserError, RunError):  # of the ingest itself there is a worse one
        names = sync.names_in(place)
        if strangers(names) == names:
            sync.remove(join(place, sync.MARK))
