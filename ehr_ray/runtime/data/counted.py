"""What is known of rows that are streamed: counted once, kept, and mapped by every process.

    counts-<digest>/<split>/<shard>-<stamp>.index  of the rows of a shard, once they are counted
    counts-<digest>/<split>-<stamps>.index         of those of all shards, in order: what is used
                    .<split>-<stamps>.index.sound  its state when its checksum was last looked at

The digest is of all that makes rows besides the shards, a stamp of a shard's files by name, size
and time. So of what has changed a file of another name is wanted, and nothing is written over. Of
each shard, and of all, the `KEPT` files written last stay; a process that has another one mapped
goes on with it, and who wants it later counts again. A folder of another digest stays, like rows
that are kept: another experiment may use it.

The checksum of all is read once on a machine, unless the file changes, as by then its time of
change does, which nobody can set back: a start does not read all that it says of 100 million
patients. What a disk does to it without its system's knowledge is not seen.

Where nothing can be kept, the process that counts holds it, and it travels to the others.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError, ResourcesUnavailableError, StoreUnavailableError
from ehr_ray.events.block_files import block_rows, measured
from ehr_ray.events.row_batches import as_stream
from ehr_ray.events.row_index import RowIndex, read_index
from ehr_ray.runtime.data.rows import RowMaker
from ehr_ray.runtime.data.tasks import Say, in_store, run_jobs
from ehr_ray.storage import copies, files, sync
from ehr_ray.storage.paths import absolute, local, uri_of
from ehr_ray.storage.transfers import at_once

Job = Mapping[str, Any]
VERSION: Final = 1
"""Bump when the files say other things: what was kept of older versions is counted again."""
NOT_KEPT: Final = (ResourcesUnavailableError, StoreUnavailableError, InputError)
"""What a disk or a store answers that takes no files; there, the next start counts again."""
SOUND: Final = ".sound"
"""Ending of the file that holds the state in which an index was found sound."""
KEPT: Final = 2
"""Files that stay of a shard, and of all of a split: of what it is, and of what it was before."""


@dataclass(frozen=True)
class KeptIndex:
    """What is known of the rows of a split, in a file; it travels, and holds nothing of it.

    Args:
        place: path or URI of the file.
        stamps: of the shards that it tells of, in order.
    """

    place: str
    stamps: tuple[int, ...]

    def open(self) -> RowIndex:
        """Return it, mapped, where it lies here or in a store; InputError where it does not."""
        found = self.read()
        if found is None:
            raise InputError(
                f"{self.place}: not here, or not what was counted; data.cache_dir must be a folder "
                "of all nodes or in a store: run the same command again"
            )
        return found

    def read(self, *, whole: bool = False) -> RowIndex | None:
        """Return it, mapped; None where it is not there, or of others, or damaged (`whole`).

        All of it is read for that where it was not since it last changed.
        """
        path = sync.fetch(self.place, missing_ok=True)
        state, note = _state(path), path.with_name(f".{path.name}{SOUND}")
        sound = state is not None and _text(note) == state
        found = read_index(path, self.stamps, whole=whole and not sound)
        if whole and found is not None and not sound and state is not None:
            with contextlib.suppress(*NOT_KEPT):
                files.write_text(note, state)
        return found


def _state(path: Path) -> str | None:
    """Return what is another once a file is written to, or replaced; None without a file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return repr((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeError):
        return None


@dataclass(frozen=True)
class Counts:
    """Where what is known of rows is kept.

    Args:
        folder: the folder of all splits, on this machine.
        names: of each shard in each split, in order: of its file.
        stamps: what tells each of them from what it was, in 64 bits with a sign.
    """

    folder: Path
    names: Mapping[str, Sequence[str]]
    stamps: Mapping[str, Sequence[int]]

    def of(self, split: str) -> KeptIndex:
        """Return where what is known of all rows of a split is kept."""
        stamps = tuple(self.stamps[split])
        digest = hashlib.sha256(np.array(stamps, np.int64).tobytes()).hexdigest()[:16]
        return KeptIndex(absolute(self.folder / f"{split}-{digest}.index"), stamps)

    def parts(self, split: str) -> Iterator[KeptIndex]:
        """Yield the same of each shard of a split."""
        for name, stamp in zip(self.names[split], self.stamps[split], strict=True):
            file = f"{name}-{stamp % (1 << 64):016x}.index"
            yield KeptIndex(absolute(self.folder / split / file), (stamp,))


def stamp_of_shard(files: Sequence[tuple[str, int, int]]) -> int:
    """Return the stamp of a shard by name, size and time of each of its files."""
    digest = hashlib.sha256(json.dumps(files).encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def counted(
    maker: RowMaker,
    shards: Mapping[str, Sequence[Job]],
    counts: Counts,
    *,
    on_ray: bool,
    say: Say,
) -> dict[str, RowIndex | KeptIndex]:
    """Return what is known of the rows of each split, in a file unless nothing can be kept.

    Of shards that have not been counted the rows are made, a job each, and dropped.
    """
    index: dict[str, RowIndex | KeptIndex] = {}
    told: dict[str, dict[int, bytes]] = {}
    for split in shards:
        if counts.of(split).read(whole=True) is not None:
            index[split] = counts.of(split)
        else:
            told[split] = _counted_before(counts, split)
    missing = {
        (split, number): {"job": job, "part": part}
        for split in told
        for number, (job, part) in enumerate(zip(shards[split], counts.parts(split), strict=True))
        if number not in told[split]
    }
    made = run_jobs(
        CountShard(maker),
        [*missing.values()],
        on_ray=on_ray,
        say=say,
        verb="counted rows of shards",
        label=_shard_of,
    )
    for (split, number), table in zip(missing, made, strict=True):
        told[split][number] = table
    counted_anew = bool(told)
    for split in [*told]:
        index[split] = _kept(counts.of(split), told.pop(split))
    if counted_anew:
        _remove_former(counts)
    if any(isinstance(one, RowIndex) for one in index.values()):
        say(f"{counts.folder}: takes no files, so the next start counts rows again")
    return {split: index[split] for split in shards}


class CountShard:
    """The function of a shard that makes its rows, and keeps and gives what is known of them."""

    def __init__(self, maker: RowMaker) -> None:
        self._maker = maker

    def __call__(self, job: Mapping[str, Any]) -> bytes:
        """Return `measured` of the rows of `job["job"]`; write it as `job["part"]`."""
        table = measured(self._maker.of(in_store(job["job"])))
        with contextlib.suppress(*NOT_KEPT):
            _write([table], job["part"])
        return table


def _shard_of(job: Mapping[str, Any]) -> str:
    return str(job["job"]["shard"])


def _counted_before(counts: Counts, split: str) -> dict[int, bytes]:
    """Return what is known of shards that have been counted, by number, as `CountShard` gives it.

    It is copied: a process may map 65,530 files at most.
    """
    parts = [*counts.parts(split)]
    names = {local(part.place).name for part in parts}
    sync.fetch(counts.folder / split, only=names, missing_ok=True)
    found = {}
    for number, part in enumerate(parts):
        index = read_index(local(part.place), part.stamps, whole=True)
        if index is not None:
            found[number] = as_stream([index.table])
    return found


def _kept(target: KeptIndex, told: Mapping[int, bytes]) -> RowIndex | KeptIndex:
    """Return what is known of a split, written if it can be, by what is known of each shard."""
    tables = [told[number] for number in range(len(target.stamps))]
    with contextlib.suppress(*NOT_KEPT):
        _write(tables, target)
        if target.read() is not None:
            return target
    return _joined(tables, target)


def _remove_former(counts: Counts) -> None:
    """Remove what is known of former states, but the last ones, where files can be removed."""
    used = {
        local(one.place)
        for split in counts.names
        for one in (counts.of(split), *counts.parts(split))
    }
    former: dict[str, list[tuple[bool, int, Path]]] = {}
    with contextlib.suppress(*NOT_KEPT, OSError):
        for name, (_, written) in sync.stamps_in(counts.folder).items():
            path = counts.folder / name
            former.setdefault(name.rpartition("-")[0], []).append((path in used, written, path))
        at_once(_remove, [path for own in former.values() for *_, path in sorted(own)[:-KEPT]])


def _remove(path: Path) -> None:
    sync.remove(path)
    path.with_name(f".{path.name}{SOUND}").unlink(missing_ok=True)


def _write(tables: Sequence[bytes], target: KeptIndex) -> None:
    path = local(target.place)
    # What the store does not have yet, another start that fetches it, or the folder, would remove.
    stored = uri_of(path) is not None
    with copies.held(path.parent) if stored else contextlib.nullcontext(), copies.unsent(path):
        _joined(tables, target).write(path)
        sync.push(path)


def _joined(tables: Sequence[bytes], target: KeptIndex) -> RowIndex:
    parts = [pa.ipc.open_stream(table).read_all() for table in tables]
    rows = [block_rows(len(part)) for part in parts]
    return RowIndex.of(parts, rows, np.array(target.stamps, np.int64))
