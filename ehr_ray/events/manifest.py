"""The manifest of a cohort: what each shard holds, counted once and read by all that needs counts.

It is a folder of Parquet files, each of some shards in the order of splits and shards, and of no
more codes in a row group than a process can hold. What is in it is only believed while the shards
are those it was made of, by their size and by the footer, which every other writing changes.
"""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehr_ray.errors import MissingError
from ehr_ray.events.code_counts import COUNTS, count_shard
from ehr_ray.events.code_statistics import GROUP_SHARDS
from ehr_ray.storage import files, in_place
from ehr_ray.storage.listing import stamp, stamped
from ehr_ray.storage.transfers import AT_ONCE

FOLDER: Final = Path("metadata") / "manifest"
"""In a cohort that `ingest` made."""
VERSION: Final = 1
"""Bump when a row says other things: what was kept of older versions is counted again."""
SHARDS_PER_FILE: Final = GROUP_SHARDS
"""So that a job writes a file and joins what it counts."""
ROW_GROUP_CODES: Final = 1 << 16
"""Codes after which a row group ends: what is held where codes are read."""
FOOTERS: Final = 16
"""Shards whose footers a thread reads before it is told of more."""
REMEDY: Final = "remove it, and what it says is counted again"
_GONE: Final = "gone; restore it, or run the same command again"

MANIFEST: Final = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("subjects", pa.int64(), nullable=False),
        pa.field("events", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("footer", pa.string(), nullable=False),
        pa.field("min_time", pa.timestamp("us")),
        pa.field("max_time", pa.timestamp("us")),
        pa.field("codes", pa.list_(pa.struct(list(COUNTS))), nullable=False),
    ]
)
"""A row a shard: its path in the cohort, its size and a hash of its footer, the first and the last
time of its events (null where none has one), and its `COUNTS`."""


def describe_shard(path: Path, shard: str, split: str) -> pa.Table:
    """Return the row of `MANIFEST` of a shard, by one pass over it; `shard` is its name there.

    One that is in its store alone is read there.
    """
    size, footer = _end_of(path)  # first: of a shard that is replaced meanwhile, it is not true
    counts = count_shard(path)
    codes = pa.StructArray.from_arrays(
        [column.combine_chunks() for column in counts.codes.columns], fields=list(COUNTS)
    )
    row = {
        "shard": [shard],
        "split": [split],
        "subjects": [counts.subjects],
        "events": [counts.events],
        "bytes": [size],
        "footer": [footer],
        "min_time": pa.array([counts.min_time], pa.int64()).cast(pa.timestamp("us")),
        "max_time": pa.array([counts.max_time], pa.int64()).cast(pa.timestamp("us")),
        "codes": pa.ListArray.from_arrays(pa.array([0, len(codes)], pa.int32()), codes),
    }
    return pa.table(row, schema=MANIFEST)


def counts_of(rows: pa.Table) -> pa.Table:
    """Return the `COUNTS` in rows of `MANIFEST`, end to end."""
    codes = rows["codes"].combine_chunks().flatten()
    return pa.table(codes.flatten(), schema=COUNTS)


def write_rows(rows: Iterable[pa.Table], path: Path) -> None:
    """Write rows of `MANIFEST` as one file, at once; a row group of them is held."""
    with (
        files.new_file(path) as partial,
        pq.ParquetWriter(partial, MANIFEST, compression="zstd", **files.CHECKED) as writer,
    ):
        group: list[pa.Table] = []
        for row in rows:
            group.append(row)
            if sum(len(one["codes"].combine_chunks().values) for one in group) >= ROW_GROUP_CODES:
                writer.write_table(pa.concat_tables(group).combine_chunks())
                group = []
        if group:
            writer.write_table(pa.concat_tables(group).combine_chunks())


def write_manifest(rows: Iterable[pa.Table], folder: Path) -> None:
    """Write rows of `MANIFEST`, in the order of splits and shards, as the files of a manifest."""
    waiting = iter(rows)
    for number in itertools.count():
        some = itertools.islice(waiting, SHARDS_PER_FILE)
        first = next(some, None)
        if first is None:
            return
        write_rows(itertools.chain([first], some), folder / file_name(number))


def file_name(number: int) -> str:
    """Return the name of a file of a manifest; names are in order."""
    return f"{number:06d}.parquet"


def footer_hash(path: Path) -> str:
    """Return a hash of the end of a Parquet file, which says where each page is and what it spans.

    Any other file has one too.
    """
    if in_place.is_here(path):
        return _end_of(path)[1]
    try:
        known = stamp(path)
    except FileNotFoundError:
        raise MissingError(f"{path}: {_GONE}") from None
    return _hash_there(path, known)


@lru_cache(maxsize=1 << 16)  # a command asks several times
def _hash_there(path: Path, _stamp: tuple[int, int]) -> str:
    """Return the hash of a shard that is in its store alone."""
    return _end_of(path)[1]


def _end_of(path: Path) -> tuple[int, str]:
    """Return the bytes of a shard, here or in its store, and the hash of its end."""
    # Asked by opening it: another process may remove a copy that is old.
    with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
        return _end_hash(file)
    with in_place.opened(path.parent, path.name) as file:
        found = None if file is None else _end_hash(file)
    if found is None:
        raise MissingError(f"{path}: {_GONE}")
    return found


def _end_hash(file: Any) -> tuple[int, str]:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length = int.from_bytes(file.read(4), "little")
    file.seek(max(0, size - 8 - length))
    return size, hashlib.blake2b(file.read(), digest_size=16).hexdigest()


def read_manifest(cohort: Path, shards: Mapping[str, Sequence[Path]]) -> "Manifest | None":
    """Return the manifest in a cohort, None where it has none of these shards as they are now."""
    found = _stored(cohort)
    return found if found is not None and found.told() == stamps(cohort, shards) else None


def is_contradicted(cohort: Path, shards: Mapping[str, Sequence[Path]]) -> bool:
    """Whether the manifest in a cohort says that these splits have other shards than these.

    What `contradicted` says of other splits counts for nothing.
    """
    return bool(contradicted(cohort, shards) & shards.keys())


def contradicted(cohort: Path, shards: Mapping[str, Sequence[Path]]) -> set[str]:
    """Return the splits of which the manifest in a cohort says that they have other shards.

    Sizes and footers are compared, no data is read. Where there is no manifest, or one of another
    version, nothing is contradicted.
    """
    found = _stored(cohort)
    if found is None:
        return set()
    return {stamp.split for stamp in found.told() ^ stamps(cohort, shards)}


class Stamp(NamedTuple):
    """By what a shard is known again: path in the cohort, split, size and hash of the footer."""

    shard: str
    split: str
    bytes: int
    footer: str


def stamps(cohort: Path, shards: Mapping[str, Sequence[Path]]) -> set[Stamp]:
    """Return the stamps of shards as they are now, by their footers alone."""
    paths = [path for own in shards.values() for path in own]
    splits = [split for split, own in shards.items() for _ in own]
    folder = f"{Path(cohort)}{os.sep}"
    names = [str(path).removeprefix(folder) for path in paths]
    sizes = [size for _, size, *_ in stamped(paths)]
    parts = [paths[i : i + FOOTERS] for i in range(0, len(paths), FOOTERS)]
    with ThreadPoolExecutor(AT_ONCE) as pool:  # of shards that are not here a store is asked
        hashes = [*itertools.chain.from_iterable(pool.map(_footer_hashes, parts))]
    return {*map(Stamp, names, splits, sizes, hashes)}


def _footer_hashes(paths: Sequence[Path]) -> list[str]:
    return [footer_hash(path) for path in paths]


def _stored(cohort: Path) -> "Manifest | None":
    """Return the manifest in a cohort, None where there is none of this version."""
    found = Manifest(tuple(sorted((Path(cohort) / FOLDER).glob("*.parquet"))))
    for path in found.files:
        with files.reads(path, REMEDY):
            if not pq.read_schema(path).equals(MANIFEST):
                return None  # of another maker, or of another version
    return found if found.files else None


@dataclass(frozen=True)
class Manifest:
    """The manifest of a cohort, read from its files each time: none of it is held.

    Args:
        files: in order.
    """

    files: tuple[Path, ...]

    def rows(self, columns: Sequence[str], split: str | None = None) -> Iterator[pa.Table]:
        """Yield columns of some shards at a time, in order; of all splits, or of one."""
        wanted = [*dict.fromkeys([*columns, "split"])]
        for path in self.files:
            with files.reads(path, REMEDY), files.open_parquet(path) as file:
                for number in range(file.num_row_groups):
                    table = file.read_row_group(number, wanted)
                    if split is not None:
                        table = table.filter(pc.equal(table["split"], split))
                    if len(table):
                        yield table.select(list(columns))

    def told(self) -> set[Stamp]:
        """Return the stamps of all shards as they were counted."""
        tables = [table.to_pydict() for table in self.rows(Stamp._fields)]
        return {stamp for table in tables for stamp in map(Stamp, *table.values())}

    def column(self, name: str, split: str | None = None) -> list[Any]:
        """Return a column, a value a shard, in order."""
        return [value for table in self.rows([name], split) for value in table[name].to_pylist()]

    def total(self, name: str, split: str | None = None) -> int:
        """Return the sum of a column of numbers, as `subjects`."""
        return sum(self.column(name, split))

    def counts(self, split: str | None = None) -> Iterator[pa.Table]:
        """Yield the `COUNTS` of each shard, in order."""
        for table in self.rows(["codes"], split):
            for number in range(len(table)):
                yield counts_of(table.slice(number, 1))

    def by_code(self, columns: Sequence[str], split: str | None = None) -> dict[str, list[int]]:
        """Return sums of columns of `COUNTS` over shards, by code."""
        names: dict[str, int] = {}
        sums = np.zeros((len(columns), 0), np.int64)
        for table in self.rows(["codes"], split):
            counts = counts_of(table).group_by("code", use_threads=False)  # in order of appearance
            counts = counts.aggregate([(name, "sum") for name in columns])
            ids = [names.setdefault(code, len(names)) for code in counts["code"].to_pylist()]
            sums = np.pad(sums, ((0, 0), (0, len(names) - sums.shape[1])))
            for total, name in zip(sums, columns, strict=True):
                total[ids] += counts[f"{name}_sum"].to_numpy()
        return dict(zip(names, sums.T.tolist(), strict=True))
