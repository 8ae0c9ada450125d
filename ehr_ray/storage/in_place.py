"""Data by URI used where it lies: parts of files, and single files, without a copy of the folder.

A path of this machine is used in the same way, as far as that makes sense of it.
"""

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ehr_ray.errors import InputError, MissingError, RunError
from ehr_ray.storage import files
from ehr_ray.storage.object_stores import explained, filesystem, of_store
from ehr_ray.storage.paths import is_outlined, is_uri, uri_above, uri_of
from ehr_ray.storage.transfers import download, each, join, stamp_of, upload

TAIL: Final = 1 << 16
"""Bytes from the end of a Parquet file that are asked for first: most footers are within."""


def tail(location: str | Path, start: int) -> tuple[bytes, int]:
    """Return what was added to an object after `start` bytes, and its size; all if it began anew.

    Without a URI, or an object, there is nothing.
    """
    uri = uri_of(location)
    if uri is None:
        return b"", start
    with explained(uri, copied=False):
        store, path = filesystem(uri)
        size = store.get_file_info(path).size
        if size is None or size == start:
            return b"", start
        with store.open_input_file(path) as file:
            file.seek(start if start < size else 0)
            return file.read(), size


def folders_in(location: str | Path) -> set[str]:
    """Return the names of the folders in that of a URI, of the machine alone or not."""
    uri = uri_of(location)
    if uri is None:
        return set()
    with explained(uri):
        store, path = filesystem(uri)
        # In Google's pyarrow lists no folder that is not an object of its own.
        every = store.type_name == "gcs"
        selector = pafs.FileSelector(path, recursive=every, allow_not_found=True)
        found = store.get_file_info(selector)
        if every:
            below = (
                os.path.relpath(info.path, path).partition("/") for info in found if info.is_file
            )
            return {name for name, inner, _ in below if inner}
        return {info.base_name for info in found if info.type == pafs.FileType.Directory}


@contextlib.contextmanager
def opened(folder: str | Path, name: str) -> Iterator[Any]:
    """Open a file of a folder to read parts of it, without a copy; None where there is none.

    A file of this machine is mapped, and of an object of a URI, and of a file of its copy that is
    not here, ranges of bytes are asked for.
    """
    if not is_uri(folder) and is_here(here := Path(folder, name)):
        with pa.memory_map(str(here)) as file:
            yield file
        return
    uri = uri_of(folder)
    if uri is None:
        yield None
        return
    with explained(uri, copied=False):
        store, path = filesystem(uri)
        try:
            file = store.open_input_file(join(path, name))
        except FileNotFoundError:
            file = contextlib.nullcontext()
        with file as there:
            yield there


@contextlib.contextmanager
def binary(path: str | Path) -> Iterator[Any]:
    """Open a file of this machine, or what a stand-in stands for, which leaves nothing here."""
    if not is_outlined(path):
        with open(path, "rb") as file:
            yield file
        return
    uri, name = uri_above(path)
    with opened(uri, name) if uri else contextlib.nullcontext() as file:
        if file is None:
            raise InputError(f"{path}: no such file any more; run the same command again")
        yield file


def exists(folder: str | Path, name: str) -> bool:
    """Whether a folder, or that of a URI, has a file of this name."""
    if not is_uri(folder):
        return Path(folder, name).exists()
    with explained(str(folder)):
        store, path = filesystem(str(folder))
        found = store.get_file_info(join(path, name)).type == pafs.FileType.File
        return bool(found)


def bring(uri: str, names: Collection[str], target: Path) -> None:
    """Copy files of the folder of a URI to a folder in the staging folder, each by its name.

    What is there already as it is in the store is not copied again, and nothing else in either
    folder is looked at. Raises MissingError where a file is missing.
    """
    with explained(uri):
        store, path = filesystem(uri)
        wanted = sorted(names)
        found = store.get_file_info([join(path, name) for name in wanted])
        for name, info in zip(wanted, found, strict=True):
            if info.type != pafs.FileType.File:
                raise MissingError(f"{uri}: no {name} there; check the URI")
        stamps = {n: (info.size, info.mtime_ns) for n, info in zip(wanted, found, strict=True)}
        old = [name for name in wanted if stamp_of(target / name) != stamps[name]]
        each(lambda n: download(store, join(path, n), target / n, stamps[n]), old)


def leave(source: Path, names: Iterable[str], uri: str, last: str | None = None) -> None:
    """Write files of a folder to that of a URI; `last`, one of them, once the others are there."""
    with explained(uri):
        store, path = filesystem(uri)
        each(lambda n: upload(store, source / n, join(path, n)), {*names} - {last})
        if last is not None:
            upload(store, source / last, join(path, last))


def copy_within(uri: str, names: Iterable[str], output: str) -> None:
    """Copy objects of a folder to another one of the same store; the store itself moves them."""
    with explained(output):
        (store, source), (_, target) = filesystem(uri), filesystem(output)

        def copied(name: str) -> None:
            if store.type_name == "local":  # which makes no folders, and shows a file half written
                upload(store, Path(join(source, name)), join(target, name))
            else:
                store.copy_file(join(source, name), join(target, name))

        each(copied, {*names})


def is_here(location: str | Path) -> bool:
    """Whether a path is of a file that is on this machine; a URI, or a stand-in, is of none."""
    return not is_uri(location) and not is_outlined(location) and Path(location).exists()


@contextlib.contextmanager
def _sound(location: str | Path, remedy: str) -> Iterator[None]:
    """Tell of a damaged file by name where it is not its store that failed."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        if isinstance(error, OSError) and of_store(error):
            raise
        raise files.unreadable(location, error, remedy) from error


def footer(location: str | Path) -> Any:
    """Return the Parquet metadata of a file, which for a URI is read without the rest of it."""
    with files.reads(location, "restore it"):  # a damaged one is no fault of its store
        return raw_footer(location)


def raw_footer(location: str | Path) -> Any:
    """Return what `footer` does; of a damaged file pyarrow's error, of a store InputError."""
    there = _there(location)
    if there is None:
        return pq.read_metadata(location)
    uri, store, path = there
    with explained(uri, copied=False), store.open_input_file(path) as file:
        end = _footer_bytes(file)
    return pq.read_metadata(pa.BufferReader(end))


def _there(location: str | Path) -> tuple[str, Any, str] | None:
    """Return the URI of a file that is not here, its store and its path there; None of others.

    A name with # or ? is in no URI: that is then of its folder.
    """
    if is_here(location):
        return None
    uri, name = uri_of(location), ""
    if uri is None:
        uri, name = uri_above(location)
    if uri is None:
        return None
    with explained(uri, copied=False):
        store, path = filesystem(uri)
    return uri, store, join(path, name) if name else path


def _footer_bytes(file: Any) -> Any:
    size = file.size()
    end = file.read_at(min(size, TAIL), max(size - TAIL, 0))
    length = int.from_bytes(end[-8:-4], "little") + 8
    return file.read_at(length, size - length) if len(end) < length <= size else end


@contextlib.contextmanager
def parquet(
    location: str | Path, remedy: str = "restore it", **options: Any
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; of a URI only what is read of it travels, and no copy is made.

    So it is with a file of a copy that is not here. Of a store errors are in one line, with a
    remedy for a file that is damaged, so that nothing else belongs in the block; of this machine
    they are as they come. `options` are those of `ParquetFile`.
    """
    there = _there(location)
    if there is None:
        with files.open_parquet(location, **options) as file:
            yield file
        return
    uri, store, path = there
    with (
        explained(uri, copied=False),
        _unchanged(store, path, location),
        store.open_input_file(path) as source,
        _sound(location, remedy),
    ):
        yield files.open_parquet(source, **options)


@contextlib.contextmanager
def _unchanged(store: Any, path: str, location: str | Path) -> Iterator[None]:
    """Raise RunError where a file is another one at the end of the block, or at an error in it.

    What is read of it is asked for piece by piece, by no version: pieces may be of both. Who leaves
    the block before its end, as of a generator, is not told.
    """

    def stamp() -> tuple[int | None, int | None]:
        found = store.get_file_info(path)
        return found.size, found.mtime_ns

    before, changed = stamp(), f"{location}: changed while it was read; run the same command again"
    try:
        yield
    except Exception as error:
        if stamp() != before:
            raise RunError(changed) from error
        raise
    if stamp() != before:
        raise RunError(changed)
