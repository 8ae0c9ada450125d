"""Runs in a store: what is fetched of one, and what it sends at a report."""

import os
import shutil
from pathlib import Path
from typing import Final

from ehr_ray.storage import sync
from ehr_ray.storage.contents import files_of
from ehr_ray.storage.lock import held_by_another
from ehr_ray.storage.paths import inside, uri_of

BEFORE: Final = ".checkpoint.old"
"""A run's checkpoint before the present one, which a store keeps too."""
SENDING: Final = ".sending"
"""What a run has saved at a report that is on its way to its store, by links beside it."""


def fetch_run(location: str | Path, *, missing_ok: bool = False) -> Path:
    """Fetch a run, without the copy of a state whose writing was interrupted; return its folder.

    The checkpoint before the present one comes too.
    """
    run = sync.fetch(location, missing_ok=missing_ok)
    if uri_of(location) is not None and not held_by_another(run):
        sync.fetch(run / BEFORE, missing_ok=True)
        for state in (run / "state").glob("[0-9]*"):
            if not (state / sync.LAST[-1]).is_file():
                shutil.rmtree(inside(state))
    return run


def push_run(run: Path, source: Path | None = None) -> None:
    """Write what a run has saved to its URI, the checkpoint before the present one first.

    `source` is a `snapshot` of it, which training may go on beside.
    """
    source = source or run
    if (source / BEFORE).is_dir():
        sync.push(run / BEFORE, source=source / BEFORE)
    sync.push(run, mirror=("state",), source=source)


def snapshot(run: Path) -> Path:
    """Return a folder with what a run has saved until now, its old checkpoint too, by hard links.

    It stays as it is while the run goes on, as every file of a run is replaced and none written to;
    files are found as changed, or not, in either. The snapshot before is removed. `OSError` where
    the disk knows no hard links.
    """
    folder = inside(run / SENDING)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in [*files_of(run), *(f"{BEFORE}/{name}" for name in files_of(run / BEFORE))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(run / name, folder / name)
    return folder
