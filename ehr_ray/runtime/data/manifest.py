"""The manifest of any cohort: that of `ingest`, else one made by jobs of shards, once, and kept.

A dataset of others, a cohort whose shards were changed and one of an earlier version have theirs
in a folder of the cache, named by the paths, sizes and times of the shards.
"""

import bisect
import contextlib
import hashlib
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import pyarrow as pa

from ehr_ray.errors import AwayError, ResourcesUnavailableError, StoreUnavailableError
from ehr_ray.events.code_statistics import GROUP_SHARDS
from ehr_ray.events.manifest import (
    FOLDER,
    SHARDS_PER_FILE,
    VERSION,
    Manifest,
    contradicted,
    describe_shard,
    file_name,
    read_manifest,
    write_rows,
)
from ehr_ray.events.patients import texts_of
from ehr_ray.events.sample_folder import SampleFolder
from ehr_ray.runtime.data.tasks import Say, run_jobs
from ehr_ray.storage import copies, files, sync
from ehr_ray.storage.listing import stamped
from ehr_ray.storage.paths import absolute, local, staging, uri_of

T = TypeVar("T")
NO_FILES: Final = (ResourcesUnavailableError, StoreUnavailableError, AwayError)
"""What a cache raises that takes no files: what would be kept there is made again each time."""
FILES: Final = 256
"""Files of a manifest, a job each, before one is of several shards."""


def kept_lines(path: Path) -> list[str] | None:
    """Return the lines that were kept in a file; None where there are none to be read."""
    try:
        return [str(line) for line in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError):
        return None


def mute(line: str) -> None:
    """Say nothing: it takes seconds where other steps take hours."""


@dataclass(frozen=True)
class Shards:
    """The shards of a cohort as they lie there, listed once for all that a command asks of them.

    Args:
        cohort: its folder.
        texts: paths of the shards of each split that has any, in order.
        cache: where what was found of them is kept; None: nowhere.
    """

    cohort: Path
    texts: Mapping[str, Sequence[str]]
    cache: Path | None = None

    @classmethod
    def of(cls, cohort: Path, cache: Path | None = None) -> "Shards":
        """Return those of a cohort; InputError as `splits_of` raises it."""
        return cls(Path(cohort), texts_of(cohort), cache)

    @cached_property
    def splits(self) -> Mapping[str, list[Path]]:
        """The shards of each split, as `splits_of` has them."""
        return {split: [*map(Path, paths)] for split, paths in self.texts.items()}

    @cached_property
    def stamps(self) -> Mapping[str, list[tuple[str, int, int, int]]]:
        """Name, size and times of each shard of each split, in order, looked at once."""
        return {split: stamped(paths) for split, paths in self.texts.items()}

    @cached_property
    def contradicted(self) -> set[str]:
        """Splits of which the cohort's manifest says that they have other shards.

        The footers that say so are read once, and what they say is kept until a file changes.
        """
        told = sorted((self.cohort / FOLDER).glob("*.parquet"))
        if not told:
            return set()
        name = f"contradicted-{self.digest(*(path.relative_to(self.cohort) for path in told))}"
        kept = None if self.cache is None else self.cache / f"{name}-{VERSION}.json"
        if kept is not None and (told_before := kept_lines(kept)) is not None:
            return {*told_before}
        found = contradicted(self.cohort, self.splits)
        if kept is not None:
            with contextlib.suppress(*NO_FILES):
                files.write_text(kept, json.dumps(sorted(found)))
        return found

    def digest(self, *tables: Path) -> str:
        """Return a hash of names, sizes and times of the shards and of tables beside them."""
        paths = [path for table in tables if (path := self.cohort / table).is_file()]
        text = self._text if not paths else f"{self._text[:-1]}, {json.dumps(stamped(paths))[1:]}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def _text(self) -> str:
        return json.dumps([*itertools.chain(*self.stamps.values())])


@contextlib.contextmanager
def opened(
    cohort: Path,
    cache: Path | None,
    *,
    on_ray: bool,
    say: Say = mute,
    shards: Shards | None = None,
) -> Iterator[Manifest]:
    """Yield the manifest of a cohort, counting its shards where there is none of them.

    What is counted is kept under `cache`; without one, or where nobody may write to it, it is
    removed after the block. With `on_ray` it is counted by tasks of the session that is open.
    `shards` are those of the cohort, where they have been listed.
    """
    shards = shards or Shards.of(cohort)
    found, name = read_manifest(cohort, shards.splits), f"manifest-{shards.digest()}-{VERSION}"
    if found is None and cache is not None:
        with contextlib.suppress(*NO_FILES):
            found = _made(cohort, shards.splits, Path(cache).absolute() / name, on_ray, say)
    if found is not None:
        yield found
        return
    with scratch(None, name) as folder:  # of this machine, where tasks of others write nothing
        yield _made(cohort, shards.splits, folder, False, say)


@contextlib.contextmanager
def scratch(cache: Path | None, name: str) -> Iterator[Path]:
    """Yield a new folder for jobs to write to: in the cache, or on this machine.

    It is removed after the block, or, if the command was killed, when the next one of this machine
    begins there. Its name is not hidden: what is, stays on the machine.
    """
    root = Path(tempfile.gettempdir()) if cache is None else Path(cache).absolute()
    with contextlib.suppress(OSError, *NO_FILES):
        for left in files.abandoned([root / name]):
            sync.remove(left)
    folder = files.of_process(root / name)
    try:
        with contextlib.suppress(OSError):  # whoever writes there tells
            if uri_of(folder) is not None:
                staging().mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(parents=True)  # to be found here, where others alone write to a store
        yield folder
    finally:
        with contextlib.suppress(OSError, *NO_FILES):
            sync.remove(folder)


def in_scratch(
    cache: Path | None, name: str, make: Callable[[Path, bool], T], *, on_ray: bool
) -> T:
    """Return what is made in a `scratch` of the cache, or of this machine if that takes no files.

    `make` gets the folder, and whether tasks of Ray may write to it: not to one of this machine.
    """
    if cache is not None:
        with contextlib.suppress(*NO_FILES), scratch(cache, name) as folder:
            return make(folder, on_ray)
    with scratch(None, name) as folder:
        return make(folder, False)


def _made(
    cohort: Path, shards: Mapping[str, Sequence[Path]], folder: Path, on_ray: bool, say: Say
) -> Manifest:
    """Return the manifest in `folder`, whose files that are not there yet are made, a job each."""
    paths = [
        (path.relative_to(cohort).as_posix(), split, absolute(path))
        for split, found in shards.items()
        for path in found
    ]
    size = min(SHARDS_PER_FILE, math.ceil(len(paths) / FILES))
    groups = [paths[start : start + size] for start in range(0, len(paths), size)]
    there = sync.names_in(folder)
    sync.fetch(folder, only=there, missing_ok=True)  # others may be on their way there
    targets = tuple(folder / file_name(number) for number in range(len(groups)))
    jobs = [
        (group, absolute(target))
        for group, target in zip(groups, targets, strict=True)
        if target.name not in there
    ]
    run_jobs(_describe, jobs, on_ray=on_ray, say=say, verb="counted shards", label=_target_of)
    for target in targets if jobs else ():
        sync.fetch(target)
    return Manifest(targets)


def _target_of(job: tuple[Sequence[tuple[str, str, str]], str]) -> str:
    return job[1]


def _describe(job: tuple[Sequence[tuple[str, str, str]], str]) -> None:
    """Write the file of a manifest that is of some shards: (name in it, split, place) each."""
    shards, target = job
    rows = (describe_shard(sync.in_store(place), name, split) for name, split, place in shards)
    with copies.unsent(target):
        write_rows(rows, local(target))
        sync.push(target)


def fitted_codes(
    manifest: Manifest,
    train: Sequence[Path],
    cache: Path | None,
    *,
    on_ray: bool,
    say: Say = mute,
) -> pa.Table:
    """Return what `fit_codes` gives, by jobs of the shards of `train`, in order, and their counts.

    What the jobs leave lies in a folder of the cache meanwhile.
    """

    def make(folder: Path, on_ray: bool) -> pa.Table:
        return _fitted(manifest, train, SampleFolder(folder), on_ray, say)

    return in_scratch(cache, "fit", make, on_ray=on_ray)


def _fitted(
    manifest: Manifest, train: Sequence[Path], folder: SampleFolder, on_ray: bool, say: Say
) -> pa.Table:
    place = absolute(folder.path)
    run = partial(run_jobs, on_ray=on_ray, say=say)
    groups = _groups(manifest)
    run(Count(place), groups, verb="joined counts")
    for group in groups:
        sync.fetch(folder.counted(group.number))
    fit = folder.join(len(groups))
    sync.push(folder.joined)
    jobs = [(number, absolute(path)) for number, path in enumerate(train)]
    run(Draw(place), jobs, verb="sampled shards")
    ranges = [*enumerate(fit.ranges())]
    run(Find(place, len(train)), ranges, verb="found quantiles")
    for number, _ in ranges:
        sync.fetch(folder.quantiles(number))
    return fit.table(folder.found(len(ranges)))


class Group(NamedTuple):
    """`GROUP_SHARDS` rows of a manifest, fewer at its end: files that have them, and rows before.

    Rows of train come first in a manifest, so that these are groups of `fit_codes`.
    """

    number: int
    files: tuple[str, ...]
    skip: int


def _groups(manifest: Manifest) -> list[Group]:
    sizes = [files.open_parquet(path).metadata.num_rows for path in manifest.files]
    edges = [0, *itertools.accumulate(sizes)]
    found = []
    for number, start in enumerate(range(0, edges[-1], GROUP_SHARDS)):
        first = bisect.bisect_right(edges, start) - 1
        last = bisect.bisect_left(edges, min(start + GROUP_SHARDS, edges[-1]))
        places = tuple(absolute(path) for path in manifest.files[first:last])
        found.append(Group(number, places, start - edges[first]))
    return found


def _name(number: int) -> str:
    return f"{number:06d}"


class Count:
    """The job of a group of shards: what they count, joined."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, group: Group) -> None:
        """Leave it in the folder, and what each shard of train has before it."""
        folder = SampleFolder(local(self._folder))
        manifest = Manifest(tuple(sync.fetch(place) for place in group.files))
        splits = manifest.column("split")[group.skip :][:GROUP_SHARDS]
        number = sum(split == "train" for split in splits)
        counts = itertools.islice(manifest.counts(), group.skip, group.skip + len(splits))
        names = [_name(group.number * GROUP_SHARDS + n) for n in range(number)]
        train = zip(names, itertools.islice(counts, number), strict=True)
        folder.count(group.number, train, counts)
        for name in names:
            sync.push(folder.seen(name))
        sync.push(folder.counted(group.number))


class Draw:
    """The job of a shard of train, as its number and its place: values for quantiles of codes."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, job: tuple[int, str]) -> None:
        """Leave them in the folder."""
        number, place = job
        folder = SampleFolder(local(self._folder))
        name, group = _name(number), number // GROUP_SHARDS
        for path in folder.needed(name, group):
            sync.fetch(path)
        folder.draw(name, group, sync.in_store(place))
        sync.push(folder.sample(name))


class Find:
    """The job of a range of codes, given with its number: their quantiles over shards of train."""

    def __init__(self, folder: str, shards: int) -> None:
        self._folder, self._names = folder, [_name(number) for number in range(shards)]

    def __call__(self, job: tuple[int, tuple[str, str]]) -> None:
        """Leave them in the folder."""
        number, codes = job
        folder = SampleFolder(local(self._folder))
        for name in self._names:
            sync.fetch(folder.sample(name))
        folder.find(number, codes, self._names)
        sync.push(folder.quantiles(number))
