"""A folder that one job fills file by file: claimed by a note of what it is filled with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ehr_ray.errors import InputError
from ehr_ray.storage import copies, files, sync
from ehr_ray.storage.paths import is_vacant, uri_of


def claim(
    output: Path,
    name: str,
    content: Mapping[str, Any],
    what: str,
    *,
    formerly: Mapping[str, Any] | None = None,
) -> set[str]:
    """Write the note `name` of a job into its folder; return the names of the files it has.

    The same job finds what it has already written. `formerly` is what an earlier version noted of
    it. `InputError` where the folder holds `what` of another job, or files without a note.
    """
    text, former = json.dumps(content), json.dumps(formerly)
    if uri_of(output) is not None:
        sync.fetch(output, only=(name,), missing_ok=True)
    elif output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; choose another --output")
    note, there = output / name, sync.names_in(output)
    if note.is_file() and note.read_text() not in (text, former):
        raise InputError(
            f"{output}: holds another {what}; choose another --output or remove the folder"
        )
    strange = there if uri_of(output) else not is_vacant(output)
    if not note.is_file() and strange:
        raise InputError(f"{output}: not empty; choose another --output")
    # Before any file: one that is killed now finds its own note, not files of nobody.
    with copies.unsent(note):
        files.write_text(note, text)
        sync.push(note)
    return there
