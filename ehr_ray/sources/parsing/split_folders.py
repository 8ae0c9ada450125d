"""Folders of an input that say which split the patients in their files are of."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ehr_ray.errors import InputError
from ehr_ray.events.schema import SPLIT_NAMES
from ehr_ray.storage import sync
from ehr_ray.storage.contents import is_hidden, walked


def files_by_split(
    path: Path, suffixes: tuple[str, ...], is_one: Callable[[Path], bool]
) -> Iterator[tuple[str, str | None, list[str]]]:
    """Yield the folder itself ("") and those named after a split, in any capitals, in order.

    Of each its name, the name of its split, and of its files those with one of these suffixes, in
    any capitals. `InputError` where another folder has such a file and it `is_one` of a patient,
    who would be lost: the first of each suffix is looked at, copied here first from a store.
    """
    with os.scandir(path) as entries:
        folders = sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
    yield "", None, _fitting(next(walked(path))[1], suffixes)
    for folder in folders:
        for below, names in walked(path / folder):
            fits = _fitting(names, suffixes)
            if not below and folder.lower() in SPLIT_NAMES:
                yield folder, folder.lower(), fits
                continue
            for name in {Path(name).suffix.lower(): name for name in reversed(fits)}.values():
                if is_one(sync.fetch(path / folder / below / name)):
                    raise InputError(
                        f"--input {path}: {folder}/{below} has files of patients and is no folder "
                        "of a split; name it train, valid (tuning) or test (held_out), or move it "
                        "elsewhere"
                    )


def _fitting(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.lower().endswith(suffixes)]
