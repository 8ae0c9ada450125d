"""Jobs of machines that share a store and nothing else.

The staging folder of an ingest into a store is a folder of the store, beside the cohort that is to
be. A job works in a folder of its own, which ends with it: it brings the files that it needs, reads
of the parts the rows of its keys alone (keyed.py), and leaves what it has made in the store, the
file by which it is known to be done at last. The process of the verb brings what is small.

In a part a table that is not there has no rows, so one that another ingest has removed must be told
from it: what is left last of a part names the files of it.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ehr_ray.errors import MissingError
from ehr_ray.events.manifest import FOLDER
from ehr_ray.events.schema import SPLITS
from ehr_ray.sources.building.keyed import removed
from ehr_ray.sources.building.staging import SPLITS_TABLE, Plan, leave_splits
from ehr_ray.sources.building.unpacking import UNPACKED
from ehr_ray.sources.parsing.databases import is_address
from ehr_ray.sources.source import Unit
from ehr_ray.storage import copies, files, in_place, sync
from ehr_ray.storage.lock import exclusive_lock
from ehr_ray.storage.paths import COHORT_FOLDERS, canonical, is_uri, join, local, staging

_OWN: Final = re.compile(
    rf"data/({'|'.join(SPLITS)})/[^/]+|({FOLDER.as_posix()}|metadata)/[^/]+|labels/[^/]+\.parquet"
)
WORK: Final = ".work"
"""In the folder of copies: a folder a job, while it runs."""
WHOLE: Final = "whole.json"
"""In a part in a store, left last: the names of its files. A part without one of them is none."""
_ROWS: Final = ".rows"
_LOCK: Final = ".lock"
_PACKAGE: Final = Path(__file__).parents[2]


@contextlib.contextmanager
def at_work(
    plan: Plan,
    output: str,
    *,
    part: Path | None = None,
    last: Path | None = None,
    needs: Collection[Path] = (),
) -> Iterator[Plan | None]:
    """Yield the plan of a job, None where it is done; paths are of the staging folder.

    Args:
        plan: of the ingest.
        output: where the cohort is to be; a disk that refuses what is written is told as its own.
        part: the folder of the part that the job makes, which in a store is known to be done by
            the files that it must have.
        last: the file by whose presence in a store another job is known to be done; without either
            it is always done anew.
        needs: files that other jobs have left.

    Raises `RunError` where one of these is gone.
    """
    if plan.store is None:
        with files.writes(f"--output {output}"):
            yield plan
        return
    if part is not None and _is_whole(join(plan.store, _name(plan, part))):
        yield None
        return
    if last is not None and in_place.exists(plan.store, _name(plan, last)):
        yield None
        return
    brought = {_name(plan, path) for path in needs}
    with _own_folder() as folder:
        try:
            in_place.bring(plan.store, brought, folder)
        except MissingError:
            raise removed(f"--output {output}") from None
        yield replace(plan, staging=folder)
        made = sync.names_in(folder) - brought
        if part is not None:
            last = part / WHOLE
            here = folder / _name(plan, part)
            (here / WHOLE).write_text(json.dumps(sorted(sync.names_in(here))))
        in_place.leave(folder, made, plan.store, None if last is None else _name(plan, last))


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """Yield a new folder for a job, removed at its end; those of killed jobs are removed now.

    A job holds a lock in its folder, which goes with its process.
    """
    parent = staging() / WORK
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with copies.held(parent):  # none is seen between its making and its lock
            for other in [path for path in parent.iterdir() if path.is_dir()]:
                with (
                    contextlib.suppress(BlockingIOError),
                    exclusive_lock(other / _LOCK, BlockingIOError(), patience=0),
                ):
                    shutil.rmtree(other, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(dir=parent))
            stack.enter_context(exclusive_lock(folder / _LOCK))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_whole(part: str) -> bool:
    """Whether all files of a part are in its store."""
    with in_place.opened(part, WHOLE) as file:
        names = None if file is None else json.loads(file.read())
    return names is not None and {*names} <= sync.names_in(part)


def _name(plan: Plan, path: Path) -> str:
    return path.relative_to(plan.staging).as_posix()


def bring(plan: Plan, *folders: str) -> None:
    """Make this process's copy of folders of the staging folder, but for rows."""
    if plan.store is None:
        return
    for folder in folders:
        place = join(plan.store, folder)
        names = {name for name in sync.names_in(place) if not name.endswith(_ROWS)}
        sync.fetch(place, only=names, missing_ok=True)


def begin_parts(plan: Plan, folder: str, number: int) -> None:
    """Remove what was made of the parts in a folder where one of them must be made again.

    It may have been made without the rows of that part.
    """
    if plan.store is None:
        return
    bring(plan, folder)
    if not _are_whole(plan, folder, number):
        for later in in_place.folders_in(plan.store) - {UNPACKED, "parts", folder}:
            sync.remove(plan.staging / later)


def bring_parts(plan: Plan, folder: str, number: int, output: str) -> None:
    """`bring` the parts in a folder; `RunError` where one of them is not whole any more."""
    bring(plan, folder)
    _check_parts(plan, folder, number, output)


def _check_parts(plan: Plan, folder: str, number: int, output: str) -> None:
    if not _are_whole(plan, folder, number):
        raise removed(f"--output {output}")


def _are_whole(plan: Plan, folder: str, number: int) -> bool:
    """Whether the store has all files of parts, as this process's copies of `WHOLE` name them."""
    if plan.store is None:
        return True
    there = sync.names_in(join(plan.store, folder))
    for part in (f"{index:06d}" for index in range(number)):
        mark = plan.staging / folder / part / WHOLE
        if f"{part}/{WHOLE}" not in there or not mark.exists():
            return False
        if not {f"{part}/{name}" for name in json.loads(mark.read_text())} <= there:
            return False
    return True


def share(plan: Plan, *folders: str) -> None:
    """Leave what this process has made in folders, or a file, of the staging folder."""
    if plan.store is not None:
        for folder in folders:
            sync.push(plan.staging / folder)


def share_splits(plan: Plan) -> None:
    """Leave the table of splits that the policy names where every job finds it."""
    if plan.store is not None and plan.policy.file is not None:
        leave_splits(plan)
        share(plan, SPLITS_TABLE)


def strangers(names: Iterable[str]) -> set[str]:
    """Return the names in a cohort's folder that no ingest into it writes.

    Others may lie in its own folders too, as a cohort at `<cohort>/data`.
    """
    return {name for name in names if not _OWN.fullmatch(name)}


def publish(plan: Plan, num_parts: int, shards: Sequence[Path], output: Path) -> None:
    """Make the cohort of a store whole: copy its shards there, and what stands beside them.

    `output` has this process's copy of the latter. Raises `RunError` where files of parts are gone:
    a job takes a table that is not there for one without rows.
    """
    if plan.store is None:
        return
    for folder in ("parts",) if plan.split_by is None else ("parts", "divided"):
        _check_parts(plan, folder, num_parts, canonical(output))
    cohort = plan.staging / "cohort"
    names = {path.relative_to(cohort).as_posix() for path in shards}
    sync.mark(output)
    in_place.copy_within(join(plan.store, "cohort"), names, canonical(output))
    sync.push(output, whole=COHORT_FOLDERS, kept=names | strangers(sync.names_in(output)))


def of_any_machine(unit: Unit) -> Unit:
    """Return a unit whose files have the name by which every machine finds them."""
    named = unit.root and not is_address(unit.root)
    return replace(unit, root=canonical(unit.root)) if named else unit


def of_this_machine(unit: Unit) -> Unit:
    """Return a unit of files on this machine, copied here if they lie in a store.

    Files that a unit names by whole paths are on this machine (`address_of`).
    """
    if is_address(unit.root) or not is_uri(unit.root):
        return unit
    root = local(unit.root)
    with copies.held(root):
        names = {name for name in (*unit.files, *unit.uses) if not os.path.isabs(name)}
        in_place.bring(unit.root, names, root)
    return replace(unit, root=str(root))


def address_of(place: str, units: Iterable[Unit]) -> str | None:
    """Return the cluster that reads units into a place: `local` for a Ray of this machine.

    Nodes of another one share a store, and no folder of this machine: where the cohort goes to a
    store, they are of use if the input lies in one too, on a server, or is made up. What a unit
    names by a whole path, as a user's own table of groups, is on no other node; a table of this
    package is.
    """
    places = {place} - {""}
    for unit in units:
        named = {name for name in (*unit.files, *unit.uses) if os.path.isabs(name)}
        places |= {unit.root, *(n for n in named if not Path(n).is_relative_to(_PACKAGE))} - {""}
    return None if not is_uri(place) or all(map(_is_everywhere, places)) else "local"


def _is_everywhere(place: str) -> bool:
    return is_uri(place) and not place.startswith(("file:", "duckdb:"))
