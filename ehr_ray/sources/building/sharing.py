"""Jobs of machines that share a store and nothing else.

The staging folder of an ingest into a store is a folder of the store, beside the cohort that is to
be. A job works in a folder of its own, which ends with it: it brings the files that it needs, reads
of the parts the rows of its keys alone (keyed.py), and leaves what it has made in the store, the
file by which it is known to be done at last. The process of the verb brings what is small.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from ehr_ray.errors import RunError
from ehr_ray.sources.building.staging import SPLITS_TABLE, TOTALS, Plan, leave_splits
from ehr_ray.sources.parsing.databases import is_address
from ehr_ray.sources.source import Unit
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import canonical, is_uri, join, local, staging

WORK: Final = ".work"
"""In the folder of copies: a folder a job, while it runs."""
_ROWS: Final = ".rows"


@contextlib.contextmanager
def at_work(
    plan: Plan, output: str, *, last: Path | None = None, needs: Collection[Path] = ()
) -> Iterator[Plan | None]:
    """Yield the plan of a job, None where it is done; paths are of the staging folder.

    Args:
        plan: of the ingest.
        output: where the cohort is to be; a disk that refuses what is written is told as its own.
        last: the file by whose presence in a store the job is known to be done; without one it is
            always done anew.
        needs: files that other jobs have left.
    """
    if plan.store is None:
        with files.writes(f"--output {output}"):
            yield plan
        return
    if last is not None and sync.exists(plan.store, _name(plan, last)):
        yield None
        return
    parent = staging() / WORK
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    brought = {_name(plan, path) for path in needs}
    try:
        sync.bring(plan.store, brought, folder)
        yield replace(plan, staging=folder)
        made = sync.names_in(folder) - brought
        sync.leave(folder, made, plan.store, None if last is None else _name(plan, last))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name(plan: Plan, path: Path) -> str:
    return path.relative_to(plan.staging).as_posix()


def bring(plan: Plan, *folders: str) -> None:
    """Make this process's copy of folders of the staging folder, but for rows of events."""
    if plan.store is None:
        return
    for folder in folders:
        place = join(plan.store, folder)
        names = {name for name in sync.names_in(place) if not name.endswith(_ROWS)}
        sync.fetch(place, only=names, missing_ok=True)


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


def publish(plan: Plan, num_parts: int, shards: Sequence[Path], output: Path) -> None:
    """Make the cohort of a store whole: copy its shards there, and what stands beside them.

    `output` has this process's copy of the latter. Raises `RunError` where parts are gone: a job
    takes a table that is not there for one without rows.
    """
    if plan.store is None:
        return
    there = sync.names_in(join(plan.store, "parts"))
    if not {f"{plan.part(i).name}/{TOTALS}" for i in range(num_parts)} <= there:
        raise RunError(
            f"--output {canonical(output)}: another ingest into it has removed what this one had "
            "left there; wait for its end, then run the same command again"
        )
    cohort = plan.staging / "cohort"
    names = {path.relative_to(cohort).as_posix() for path in shards}
    sync.mark(output)
    sync.copy_within(join(plan.store, "cohort"), names, canonical(output))
    sync.push(output, whole=True, kept=names)


def of_any_machine(unit: Unit) -> Unit:
    """Return a unit whose files have the name by which every machine finds them."""
    named = unit.root and not is_address(unit.root)
    return replace(unit, root=canonical(unit.root)) if named else unit


def of_this_machine(unit: Unit) -> Unit:
    """Return a unit of files on this machine, copied here if they lie in a store."""
    if is_address(unit.root) or not is_uri(unit.root):
        return unit
    root = local(unit.root)
    with sync.held(root):
        sync.bring(unit.root, {*unit.files, *unit.uses}, root)
    return replace(unit, root=str(root))


def address_of(place: str, units: Iterable[Unit]) -> str | None:
    """Return the cluster that reads units into a place: `local` for a Ray of this machine.

    Nodes of another one share a store, and no folder of this machine: where the cohort goes to a
    store, they are of use if the input lies in one too, on a server, or is made up.
    """
    places = {place, *(unit.root for unit in units)} - {""}
    return None if not is_uri(place) or all(map(_is_everywhere, places)) else "local"


def _is_everywhere(place: str) -> bool:
    return is_uri(place) and not place.startswith(("file:", "duckdb:"))
