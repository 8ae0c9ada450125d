"""Files that outlive faults: written whole or not at all, and read with errors of one line."""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.errors import InputError, ResourcesUnavailableError, one_line
from ehr_ray.storage.paths import working_folder
from ehr_ray.storage.processes import machine, started

REMEDIES: Final = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space there, or ask for a larger quota",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount that folder anew",
}
"""What a person can do about a write that failed."""

CHECKED: Final = {"write_page_checksum": True}
"""For every Parquet file written here: a flipped bit is seen when its page is read."""

GROUP_ROWS: Final = 1 << 20
"""Rows of a row group where nothing else is said, as pyarrow has them too."""

HDF5_DAMAGE: Final = (
    OSError,
    KeyError,
    RuntimeError,
    ValueError,
    IndexError,
    TypeError,
    MemoryError,
)
"""What a damaged HDF5 file raises when it is opened or read."""


def failed(path: str | Path, error: OSError) -> ResourcesUnavailableError:
    """Return the one line about a write that failed: the path, the reason, the remedy."""
    reason = os.strerror(error.errno) if error.errno else one_line(str(error))
    remedy = REMEDIES.get(error.errno or 0, "mend that")
    return ResourcesUnavailableError(f"{path}: {reason}; {remedy}, then run the same command again")


@contextlib.contextmanager
def writes(path: str | Path) -> Iterator[None]:
    """Turn what the disk refuses in the block into `ResourcesUnavailableError`, naming `path`.

    Of nested blocks the outermost names the path: it is the one a person gave.
    """
    try:
        yield
    except OSError as error:
        raise failed(path, error) from error
    except ResourcesUnavailableError as error:
        if isinstance(error.__cause__, OSError):
            raise failed(path, error.__cause__) from error.__cause__
        raise


def temporary(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process has, here or on another machine."""
    return path.with_name(f".{of_process(path).name}")


def of_process(path: Path) -> Path:
    """Return such a name that is not hidden, so that a store has it too.

    A process id alone is not enough: on storage that machines share two may have the same one.
    """
    host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:32]
    process = f"{host}-{os.getpid()}-{_mark()}"
    return path.with_name(f"{path.name}.{process}-{secrets.token_hex(4)}")


def _mark() -> str:
    """Return what stands in a temporary name for this machine and its boot; 0 where none tells."""
    told = machine()
    return hashlib.sha256(told.encode()).hexdigest()[:8] if told else "0"


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove what stands at `temporary` names of paths whose process has ended, as by a kill."""
    for left in abandoned(paths):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def abandoned(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield what stands at names `of_process` of paths, hidden or not, of processes that ended.

    What other machines, or this one before it was started anew, have left is not yielded: whether
    its process has ended is not known here.
    """
    if (mark := _mark()) == "0":
        return
    named = re.compile(rf"\.?(.+)\.[A-Za-z0-9-]*-(\d+)-{mark}-[0-9a-f]{{8}}", re.DOTALL)
    wanted = {*paths}
    for folder in sorted({path.parent for path in wanted}):
        for left in [*folder.iterdir()] if folder.is_dir() else []:
            match = named.fullmatch(left.name)
            if match and folder / match[1] in wanted and not started(int(match[2])):
                yield left


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a name to write to; the file is at `path` after the block, whole and on the disk.

    Whatever was at `path` stays until then, and for good if the block fails. Errors of the disk
    are as they come, for blocks that meet errors of another source too.
    """
    partial = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        # A rename may reach the disk before the bytes: after a crash the file would be empty.
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Replace a file as `replacing` does; ResourcesUnavailableError where the disk refuses it."""
    with writes(path), replacing(path) as partial:
        yield partial


@contextlib.contextmanager
def first_file(path: Path) -> Iterator[Path]:
    """Make a file as `new_file` does; one that another process has made meanwhile stays."""
    with writes(path):
        partial = temporary(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            sync(partial)
            try:
                os.link(partial, path)
            except FileExistsError:
                return
            except OSError:  # a disk without hard links
                os.replace(partial, path)
            sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def place_of_folder(path: Path) -> Path:
    """Return the absolute path at which a folder is to appear by a rename, which follows no link.

    Of links the last name's alone is followed: nodes may have a shared disk under one name, and
    each behind another link.
    """
    whole = path.absolute()
    return whole.resolve() if whole.is_symlink() or ".." in whole.parts else whole


def check_replaceable(path: Path, option: str) -> None:
    """Raise InputError where no folder can appear in place of the empty one at `path`, if any.

    Asked before the work, at the end of which it would be found.
    """
    if not path.is_dir():
        return
    if (here := working_folder()) is not None and path.samefile(here):
        raise InputError(
            f"{option}{path}: is the folder you stand in, which a new one would replace; name a "
            "folder in it"
        )
    if any(path.iterdir()):
        return  # it is never moved with what it holds
    moved = temporary(path)
    try:
        os.rename(path, moved)
    except OSError as error:
        if error.errno != errno.EBUSY:  # a folder of a container's image moves to no other name,
            return  # and can be removed all the same
        raise InputError(
            f"{option}{path}: a disk or volume is mounted there, which no new folder can replace; "
            "name a folder in it"
        ) from None
    os.rename(moved, path)


@contextlib.contextmanager
def new_folder(path: Path, publish: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """Yield an empty folder beside `path` to fill; after the block it is on the disk, and renamed.

    `publish` gets it and renames it; without one it becomes `path`, where nothing may be yet.
    Nothing of it is left if the block fails. Raises ResourcesUnavailableError where the disk is
    full or read-only.
    """
    partial = temporary(path)
    publish = publish or (lambda whole: whole.rename(path))
    try:
        with writes(path.parent):
            partial.mkdir(parents=True)
            yield partial
            sync_tree(partial)  # before the name, as in `replacing`
            publish(partial)
            sync(partial.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a small file at once."""
    with new_file(path) as partial:
        partial.write_text(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a small file at once."""
    with new_file(path) as partial:
        partial.write_bytes(content)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems know no fsync of folders: nothing to wait for there.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and all it holds are on the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


@contextlib.contextmanager
def reads(path: str | Path, remedy: str) -> Iterator[None]:
    """Turn what a damaged, foreign or vanished file raises in the block into `InputError`."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        raise unreadable(path, error, remedy) from error


def unreadable(path: str | Path, error: Exception, remedy: str) -> InputError:
    """Return the one line about a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file; {remedy}")
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return InputError(f"{path}: unreadable, damaged or cut short ({first}); {remedy}")


def open_parquet(source: Any, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file so that pages with a checksum are compared with it."""
    return pq.ParquetFile(source, page_checksum_verification=True, **options)


def read_parquet(
    path: str | Path, columns: Sequence[str] | None = None, *, remedy: str = "restore it"
) -> pa.Table:
    """Return a Parquet file, or `InputError` naming it if it is damaged."""
    with reads(path, remedy), open_parquet(path) as file:
        return file.read(None if columns is None else list(columns))


def write_parquet(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a Parquet file, with checksums, at once."""
    with new_file(path) as partial:
        pq.write_table(table, partial, **CHECKED, **options)


def write_parquet_pieces(pieces: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write tables as one Parquet file, with checksums, at once, and hold a row group of them.

    The file's bytes depend on its rows alone, not on how they came in pieces.
    """
    waiting = schema.empty_table()
    with new_file(path) as partial, pq.ParquetWriter(partial, schema, **CHECKED) as writer:
        for piece in pieces:
            waiting = pa.concat_tables([waiting, piece.cast(schema)])
            while len(waiting) >= GROUP_ROWS:
                # As one chunk: where chunks end would show in the pages.
                writer.write_table(waiting.slice(0, GROUP_ROWS).combine_chunks())
                waiting = waiting.slice(GROUP_ROWS)
        if len(waiting):
            writer.write_table(waiting.combine_chunks())
