"""Data by URI: what lies in an object store, copied here before it is used and there once it is.

Everything between works on local copies (`paths.local`), as on any folder: maps files into memory,
renames. A copy has the size and the time of change of its object, and what agrees in both is not
copied again. (A store that stamps whole seconds cannot tell two writings of one size within one.)
Objects appear whole or not at all, those that tell a reader that the others are there come last,
and a folder that is worth nothing without all its files is marked while it is written.

Names that begin with a dot are of the machine alone, unless they are asked for themselves.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow.fs as pafs

from ehr_ray.errors import InputError, MissingError, RunError, StoreUnavailableError
from ehr_ray.storage import listing
from ehr_ray.storage.contents import files_of, is_hidden, objects
from ehr_ray.storage.copies import held, sent_above, unsent_below
from ehr_ray.storage.lock import held_by_another
from ehr_ray.storage.object_stores import check_bucket, explained, filesystem
from ehr_ray.storage.paths import (
    COHORT_FOLDERS,
    inside,
    is_outlined,
    local,
    outlined,
    uri_above,
    uri_of,
)
from ehr_ray.storage.transfers import (
    Stamp,
    download,
    each,
    join,
    stamp_of,
    stand_in,
    upload,
)

MARK: Final = ".being-written"
"""Object in a folder that has begun to be written and is not whole yet."""
LAST: Final = ("table.safetensors", "model.safetensors", "progress.yaml")
"""Files that say that those beside them are there, in the order they are written."""


def fetch(
    location: str | Path,
    *,
    only: Collection[str] | None = None,
    below: Collection[str] | None = None,
    listed: Collection[str] | None = None,
    missing_ok: bool = False,
) -> Path:
    """Make this machine's copy of a URI the same as its object or folder; return the copy.

    Changed files alone are copied, and those that are gone there are removed here: of what is
    asked for alone, since what lies beside it may be on its way to the store. So may the files of a
    run that another process of this machine trains, which are newer than those of the store: of
    these nothing is changed. A path that is not the copy of a URI is returned as it is.

    Args:
        location: URI, or the path of its copy.
        only: names, relative to the folder, of the files wanted; None for all.
        below: folders in it whose files are wanted; None for all.
        listed: folders in it of which nothing is copied; `listing` then knows what is there.
        missing_ok: whether nothing may be there; then nothing is here either.

    Raises:
        InputError: nothing there, no such bucket, no access, or a folder that is not whole.
        RunError: the store cannot be reached, or this machine's disk is full.
    """
    uri = uri_of(location)
    if uri is None:
        return _fetched_below(Path(location)) if is_outlined(location) else Path(location)
    target = local(uri)
    with _opened(uri, target) as (store, path):
        if held_by_another(target):
            return target
        visible, there = _visible(store, path, uri, missing_ok=missing_ok), files_of(target)
        wanted, known = (_asked(files, only, below) for files in (visible, there))
        # First, as a folder may come where a file was.
        _remove_here(target, known.keys() - wanted.keys())
        if listed is not None:
            begin = tuple(f"{name}/" for name in listed)
            left = {n: s for n, s in wanted.items() if n.startswith(begin)}
            wanted = {n: s for n, s in wanted.items() if n not in left}
            # A file that is here is read before one that is listed, so an old one has to go.
            _remove_here(
                target, {n for n, s in left.items() if stamp_of(target / n) not in (None, s)}
            )
            listing.write(target, left)
        changed = [name for name, stamp in wanted.items() if stamp_of(target / name) != stamp]
        is_unsent = unsent_below(target)

        def bring(name: str) -> None:
            to = target / name
            if to.is_dir() and not files_of(to):  # a file comes where a folder was
                shutil.rmtree(inside(to))
            if not held_by_another(to.parent) and not is_unsent(to):  # it may have begun by now
                download(store, join(path, name), to, wanted[name])

        each(bring, changed)
        if only is listed is None and "" not in visible:
            listing.write(target, {})
    return target


def _asked(
    files: dict[str, Stamp], only: Collection[str] | None, below: Collection[str] | None
) -> dict[str, Stamp]:
    """Return the files of a location that are wanted of it; it may be a file itself."""
    folders = None if below is None else tuple(f"{name}/" for name in below)
    return {
        name: stamp
        for name, stamp in files.items()
        if name == ""
        or ((only is None or name in only) and (folders is None or name.startswith(folders)))
    }


def in_store(location: str | Path) -> Path:
    """Return the path of the copy of a URI whose files are read where they lie; nothing is copied.

    `in_place` reads what is here of it here: what is not as in the store is therefore removed. A
    path that is not the copy of a URI is returned as it is. Raises as `fetch` does.
    """
    uri = uri_of(location)
    if uri is None:
        return Path(location)
    target = local(uri)
    with _opened(uri, target) as (store, path):
        visible = _visible(store, path, uri)
        there = files_of(target).items()
        _remove_here(target, [name for name, stamp in there if visible.get(name) != stamp])
    return target


def _fetched_below(stand_in: Path) -> Path:
    """Fetch the file that a stand-in with a name of no URI is of; return the copy."""
    uri, name = uri_above(stand_in)
    if uri is None:
        raise InputError(f"{stand_in}: no such file any more; run the same command again")
    target = local(uri)
    with _opened(uri, target) as (store, path):
        stamp = _visible(store, join(path, name), f"{uri}/{name}").get("")
        if stamp is None:
            raise InputError(f"{uri}/{name}: a file before, a folder now; run it again")
        if stamp_of(target / name) != stamp:
            download(store, join(path, name), target / name, stamp)
    return target / name


def outline(location: str | Path) -> Path:
    """Return a folder, or a file, that looks like that of a URI and holds nothing of it.

    Each object has a stand-in of its name, size and time, which takes no room on the disk; nothing
    is copied. `fetch` of one gives the file itself, and `in_place` reads what it stands for. A path
    that is no copy is returned as it is. Raises as `fetch` does.
    """
    uri = uri_of(location)
    if uri is None:
        return Path(location)
    target = outlined(uri)
    with _opened(uri, target) as (store, path):
        visible, there = _visible(store, path, uri), files_of(target)
        _remove_here(target, there.keys() - visible.keys())
        for name, stamp in visible.items():
            if there.get(name) != stamp:
                stand_in(target / name, stamp)
    return target


@contextlib.contextmanager
def _opened(uri: str, target: Path) -> Iterator[tuple[Any, str]]:
    """Yield the store of a URI and the path in it, and hold the copy; errors are explained."""
    with explained(uri):
        store, path = filesystem(uri)
        with sent_above(target), held(target):
            yield store, path


def _visible(store: Any, path: str, uri: str, *, missing_ok: bool = False) -> dict[str, Stamp]:
    """Return the files of a URI that are not of its machine alone; InputError as `fetch`."""
    there = objects(store, path)
    if MARK in there and not missing_ok:
        raise InputError(
            f"{uri}: is being written, or its writing was interrupted; "
            "wait, or run the command that makes it again"
        )
    visible = {name: stamp for name, stamp in there.items() if not is_hidden(name)}
    if not visible:
        check_bucket(store, path, uri)
        if not missing_ok:
            raise MissingError(f"{uri}: nothing there; check the URI")
    return visible


def fetch_cohort(location: str | Path, *, shards: bool = False, missing_ok: bool = False) -> Path:
    """Fetch a cohort, and nothing else that lies in its folder, as runs do.

    Without `shards` these are listed; who reads one fetches it.
    """
    folder = fetch(
        location,
        below=COHORT_FOLDERS,
        listed=None if shards else ("data",),
        missing_ok=missing_ok,
    )
    if not missing_ok and uri_of(location) is not None and not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)  # of another folder, which its reader refuses
    return folder


def push(
    location: str | Path,
    *,
    only: Collection[str] | None = None,
    mirror: Iterable[str] = (),
    whole: Collection[str] = (),
    source: Path | None = None,
    kept: Collection[str] = (),
) -> None:
    """Write the changed files of a copy to its URI; a path that is no copy is left alone.

    Args:
        location: URI, or the path of its copy: a file or a folder.
        only: names, relative to the folder, of the files to write; None for all.
        mirror: folders in it whose files, where they are gone here, are removed there, at the end.
        whole: folders in it that are written as one: it is marked meanwhile, and what they have
            there and not here is removed. Of what lies beside them nothing is read or removed.
        source: what holds the files in place of the copy.
        kept: names that stay there, though they are not here.

    Raises:
        InputError: no such bucket, or no access.
        RunError: the store cannot be reached, or a file, or all there was, is not here any more.
    """
    uri = uri_of(location)
    if uri is None:
        return
    source = source or local(uri)
    if not source.exists():
        raise _gone(uri)
    with explained(uri):
        store, path = filesystem(uri)
        copies, stored = files_of(source), objects(store, path)
        folders = tuple(f"{name}/" for name in (*mirror, *whole))
        if whole:
            copies = {n: stamp for n, stamp in copies.items() if n.startswith(folders)}
        if only is not None:
            copies = {name: stamp for name, stamp in copies.items() if name in only}
        changed = [name for name, stamp in copies.items() if stored.get(name) != stamp]
        # With nothing to send too, where an earlier push was interrupted after all had arrived.
        marked = bool(whole) and (bool(changed) or MARK in stored)
        if marked:
            _write(store, join(path, MARK), b"")

        def send(name: str) -> None:
            try:
                upload(store, source / name, join(path, name))
            except FileNotFoundError:
                if (source / name).exists():
                    raise
                raise _gone(f"{uri}: {name}" if name else uri) from None

        each(send, _without(changed, LAST))
        for last in LAST:
            each(send, [name for name in changed if name.rpartition("/")[2] == last])
        for name in stored.keys() - copies.keys() - {*kept}:
            if not is_hidden(name) and name.startswith(folders):
                _forget(store.delete_file, join(path, name))
        # A store stamps objects itself. Copies take that time, so that both agree from now on.
        written = objects(store, path) if changed else {}
        for name in changed:
            _settle(uri, source / name, copies[name], written.get(name))
        if marked:
            _forget(store.delete_file, join(path, MARK))


def mark(location: str | Path) -> None:
    """Mark the folder of a URI as not whole, until it is pushed as a whole; of paths, nothing."""
    uri = uri_of(location)
    if uri is not None:
        with explained(uri):
            store, path = filesystem(uri)
            _write(store, join(path, MARK), b"")


def remove(location: str | Path) -> None:
    """Remove a folder or file with all it holds, here and at its URI."""
    path, uri = local(location), uri_of(location)
    if uri is not None:
        inside(path)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    if uri is not None:
        with explained(uri):
            store, there = filesystem(uri)
            if store.get_file_info(there).type == pafs.FileType.File:
                store.delete_file(there)
            else:
                _forget(store.delete_dir, there)


def unfinished(location: str | Path) -> bool:
    """Whether a folder in a store has begun to be written and is not whole; False for paths."""
    uri = uri_of(location)
    if uri is None:
        return False
    with explained(uri):
        store, path = filesystem(uri)
        found = store.get_file_info(join(path, MARK)).type == pafs.FileType.File
        return bool(found)


def names_in(location: str | Path) -> set[str]:
    """Return the names of all files in a folder, relative to it, without those of the machine."""
    return {*sizes_in(location)}


def sizes_in(location: str | Path) -> dict[str, int]:
    """Return the bytes of all files in a folder by relative name, without those of the machine."""
    return {name: size for name, (size, _) in stamps_in(location).items()}


def stamps_in(location: str | Path) -> dict[str, Stamp]:
    """Return the stamps of all files in a folder in the same way, in a store as that has them."""
    uri = uri_of(location)
    if uri is None:
        return files_of(Path(location))
    with explained(uri):
        found = objects(*filesystem(uri)).items()
        return {name: stamp for name, stamp in found if not is_hidden(name)}


def _write(store: Any, path: str, content: bytes) -> None:
    if store.type_name == "local":
        store.create_dir(path.rpartition("/")[0], recursive=True)
    with store.open_output_stream(path) as stream:
        stream.write(content)


def _gone(what: str) -> RunError:
    return RunError(f"{what}: gone before it was sent; run the same command again")


def _settle(uri: str, path: Path, before: Stamp, after: Stamp | None) -> None:
    """Give a copy the time of the object just made of it, unless it has changed since."""
    if after is None or after[0] != before[0]:
        text = f"{uri}: {path.name} did not arrive; run the same command again"
        raise StoreUnavailableError(text)
    if stamp_of(path) == before:
        os.utime(path, ns=(after[1], after[1]))


def _remove_here(target: Path, names: Iterable[str]) -> None:
    """Remove files that are not in the store, but for those that it has yet to get."""
    is_unsent = unsent_below(target)
    for name in names:
        if held_by_another((target / name).parent) or is_unsent(target / name):
            continue
        inside(target / name).unlink(missing_ok=True)
        folder = (target / name).parent
        while folder != target and target in folder.parents and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent


def _forget(function: Callable[[str], None], path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        function(path)


def _without(names: Iterable[str], last: Collection[str]) -> list[str]:
    return [name for name in names if name.rpartition("/")[2] not in last]
