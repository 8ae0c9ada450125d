"""The files of a folder of tables, found by the tables' names."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.databases import is_address
from ehr_ray.storage.paths import canonical

log = logging.getLogger(__name__)

SUFFIXES: Final = (".csv", ".csv.gz", ".parquet")
"""What a table's file may end in; of several the first is read."""
SHOWN: Final = 5
"""Tables that a warning names."""


def table_files(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return table -> its file in the folder; capitals are not told apart.

    Of a table that is there in several forms the plain CSV is read, and a warning says so. Raises
    `InputError` where the path is no folder.
    """
    if not root.is_dir():
        raise InputError(f"--input {root}: not a folder; give the one that holds the tables")
    there: dict[str, str] = {}
    for path in sorted(root.iterdir()):
        there.setdefault(path.name.lower(), path.name)
    found, place = {}, _named(root)
    for name in names:
        files = [there[name.lower() + end] for end in SUFFIXES if name.lower() + end in there]
        if len(files) > 1:
            log.warning(
                "%s: %s is read, %s beside it is not", place, files[0], ", ".join(files[1:])
            )
        if files:
            found[name] = files[0]
    return found


def warn_of_missing(root: str | Path, missing: Sequence[str]) -> None:
    """Say which tables are not there, if any: the first of them, and in the log all."""
    if not missing:
        return
    text = ", ".join(missing[:SHOWN])
    if len(missing) > SHOWN:
        text += f" and {len(missing) - SHOWN} more, which -v names"
        log.info("%s: tables that are not there: %s", _named(root), ", ".join(missing))
    log.warning("%s: not there, left out: %s", _named(root), text)


def _named(root: str | Path) -> str:
    """Return what a message calls the place of tables: a database's address as it is."""
    return str(root) if is_address(root) else canonical(root)
