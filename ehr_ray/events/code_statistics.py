"""Statistics of codes, fitted on train: shards are counted and sampled one by one, then joined."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import CODES, FITTED, QUANTILES, as_float32
from ehr_ray.storage import files

QUANTILE_SAMPLE = 20_000
"""Values kept per code for the quantiles: exact up to here, evenly thinned above."""


GROUP_SHARDS = 64
"""Shards of train whose moments are added one after the other; then such groups are. Sums of floats
depend on their order, and this one is the same however many processes there are."""
CHUNK_ROWS = 1 << 19
"""Rows of which moments are taken at a time."""
RANGE_VALUES = 16_000_000
"""Values of which a process takes the quantiles at a time."""


def fit_codes(shards: Iterable[Path], other: Iterable[Path] = ()) -> pa.Table:
    """Return the `CODES` table: statistics from `shards` (train), names from `other` as well.

    Numbers that float32 does not hold count as missing, as they do where values are read.
    Memory is bounded by the number of codes, not of events: two passes over the shards, one after
    the other. `SampleFolder` does the same by jobs of shards.
    """
    fit, shards = CodeFit(), list(shards)
    seen: list[pa.Table] = []
    for start in range(0, len(shards), GROUP_SHARDS):
        group = CodeFit()
        within = [group.add(count_shard(path).codes) for path in shards[start:][:GROUP_SHARDS]]
        before = fit.join(group.joined())
        seen += [summed(each, before) for each in within]
    for path in other:
        fit.add_names(count_shard(path).codes)
    strides = fit.strides()
    samples = (sample_values(path, each, strides) for path, each in zip(shards, seen, strict=True))
    return fit.table([quantiles_of(samples)])


COUNTS = pa.schema(
    [
        pa.field("code", pa.string()),
        pa.field("chunk", pa.int64()),
        pa.field("count", pa.int64()),
        pa.field("num_subjects", pa.int64()),
        pa.field("num_values", pa.int64()),
        pa.field("mean", pa.float64()),
        pa.field("squares", pa.float64()),
        pa.field("num_timed", pa.int64()),
        pa.field("num_static", pa.int64()),
    ]
)
"""What a shard tells of its codes, a row a code and chunk: `squares` are of distances to `mean`.

Moments are merged chunk by chunk, in order, wherever they come from: sums of floats depend on it.
The subjects of a code stand with its first chunk: all of them, those who have a timed event of it,
and those who have a static one.
"""

JOINED = pa.schema(
    [
        pa.field("code", pa.string()),
        pa.field("count", pa.int64()),
        pa.field("num_subjects", pa.int64()),
        pa.field("num_values", pa.int64()),
        pa.field("mean", pa.float64()),
        pa.field("squares", pa.float64()),
    ]
)
"""What several shards tell of their codes, a row a code."""

SEEN = pa.schema([pa.field("code", pa.string()), pa.field("num_values", pa.int64())])
"""How many values of a code come in the shards before one, or in the groups before one."""

STRIDES = pa.schema([pa.field("code", pa.string()), pa.field("stride", pa.int64())])
"""Of how many values of a code one is kept for its quantiles."""

SAMPLES = pa.schema([pa.field("code", pa.string()), pa.field("values", pa.list_(pa.float32()))])
"""The values of a shard that are kept, by code."""

FOUND = pa.schema([pa.field("code", pa.string()), pa.field("quantiles", pa.list_(pa.float64()))])
"""The quantiles of a code."""


class ShardCounts(NamedTuple):
    """What a shard holds.

    Args:
        subjects: how many.
        events: its rows.
        min_time: the earliest time, in microseconds since 1970; None where no event has one.
        max_time: the latest.
        codes: `COUNTS`, by code in order of first appearance in each chunk.
    """

    subjects: int
    events: int
    min_time: int | None
    max_time: int | None
    codes: pa.Table


def count_shard(path: Path) -> ShardCounts:
    """Return what a shard holds, by one pass; an event without a `time` is static."""
    names: dict[str, int] = {}
    subjects, span = _Subjects(), _Span()
    pieces = []
    for chunk, (codes, values, batch) in enumerate(_read(path, names, ["subject_id", "time"])):
        size = len(names)
        with files.reads(path, "ingest the cohort again"):
            timeless = span.add(batch)
        subjects.add(codes, batch["subject_id"].to_numpy(), timeless)
        finite = np.isfinite(values)
        valued, known = codes[finite], values[finite].astype(np.float64)
        n = np.bincount(valued, minlength=size)
        mean = np.bincount(valued, known, size) / np.maximum(n, 1)
        squares = np.bincount(valued, (known - mean[valued]) ** 2, size)
        count = np.bincount(codes, minlength=size)
        there = np.flatnonzero(count)
        pieces.append([there, np.full(len(there), chunk), *(x[there] for x in (count, n))])
        pieces[-1] += [mean[there], squares[there]]
    if not pieces:
        return ShardCounts(0, 0, None, None, COUNTS.empty_table())
    ids, chunks, count, n, mean, squares = map(np.concatenate, zip(*pieces, strict=True))
    _, first = np.unique(ids, return_index=True)
    number = np.zeros((3, len(ids)), np.int64)
    number[:, first] = subjects.number[:, ids[first]]
    any_event, timed, static = number
    columns = [chunks, count, any_event, n, mean, squares, timed, static]
    table = pa.table([pa.array(list(names)).take(pa.array(ids)), *columns], schema=COUNTS)
    return ShardCounts(subjects.total, int(count.sum()), span.first, span.last, table)


def sample_values(path: Path, seen: pa.Table, strides: pa.Table) -> pa.Table:
    """Return the `SAMPLES` of a shard: every stride-th value, counted through all shards."""
    names = {code: i for i, code in enumerate(seen["code"].to_pylist())}
    if not names:
        return SAMPLES.empty_table()
    before = seen["num_values"].to_numpy().copy()
    known = dict(zip(*strides.to_pydict().values(), strict=True))
    stride = np.array([known[code] for code in names], np.int64)
    kept: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for codes, values, _ in _read(path, names):
        finite = np.isfinite(values)
        codes, values = codes[finite], values[finite]
        order = _stable(codes)
        codes, values = codes[order], values[order]
        number = np.bincount(codes, minlength=len(before))
        position = np.arange(len(codes)) + (before - np.cumsum(number) + number)[codes]
        take = position % stride[codes] == 0
        kept.append((codes[take], values[take]))
        before += number
    codes, values = (np.concatenate(pieces) for pieces in zip(*kept, strict=True))
    order = _stable(codes)
    there, starts = np.unique(codes[order], return_index=True)
    lists = pa.ListArray.from_arrays(
        pa.array(np.r_[starts, len(codes)], pa.int32()), pa.array(values[order])
    )
    return pa.table([pa.array(list(names)).take(pa.array(there)), lists], schema=SAMPLES)


def summed(seen: pa.Table, before: pa.Table) -> pa.Table:
    """Return `SEEN` with the numbers of its codes in another one added."""
    at = pc.index_in(seen["code"], before["code"].combine_chunks())
    more = before["num_values"].take(at).fill_null(0)
    return seen.set_column(1, SEEN.field(1), pc.add(seen["num_values"], more))


def quantiles_of(samples: Iterable[pa.Table]) -> pa.Table:
    """Return `FOUND` of the `SAMPLES` of all shards, by code."""
    names: dict[str, int] = {}
    codes, values = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for sample in samples:
        local = [names.setdefault(code, len(names)) for code in sample["code"].to_pylist()]
        lists = sample["values"].combine_chunks()
        codes.append(np.repeat(np.array(local, np.int32), lists.value_lengths().to_numpy()))
        values.append(lists.flatten().to_numpy())
    ids = np.concatenate(codes)
    order = _stable(ids)
    kept = np.concatenate(values)[order]
    edges = np.searchsorted(ids[order], np.arange(len(names) + 1)).tolist()
    found = [
        (name, np.quantile(kept[edges[i] : edges[i + 1]].astype(np.float64), QUANTILES).tolist())
        for i, name in sorted(zip(names.values(), names, strict=True), key=lambda pair: pair[1])
    ]
    columns = zip(*found, strict=True) if found else ([], [])
    return pa.table([list(column) for column in columns], schema=FOUND)


def _stable(codes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the order of events by code; numpy sorts numbers of 16 bits several times faster."""
    small = not len(codes) or codes.max() < 1 << 16
    return np.argsort(codes.astype(np.uint16) if small else codes, kind="stable")


class CodeFit:
    """Statistics per code of shards that are added in order (Chan et al. 1983, eq. 1.5)."""

    def __init__(self) -> None:
        """Begin with no code."""
        self._names: dict[str, int] = {}
        self._count = np.zeros(0, np.int64)
        self._num_subjects = np.zeros(0, np.int64)
        self._num_values = np.zeros(0, np.int64)
        self._mean = np.zeros(0)
        self._squares = np.zeros(0)

    def add_names(self, counts: pa.Table) -> npt.NDArray[np.int64]:
        """Add the codes alone of `COUNTS`; return the id of each row's, [N]."""
        encoded = counts["code"].combine_chunks().dictionary_encode()
        codes = encoded.dictionary.to_pylist()
        local = [self._names.setdefault(code, len(self._names)) for code in codes]
        grow = len(self._names) - len(self._count)
        for name in ("_count", "_num_subjects", "_num_values", "_mean", "_squares"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros(grow, array.dtype)]))
        return np.array(local, np.int64)[encoded.indices.to_numpy()]

    def add(self, counts: pa.Table) -> pa.Table:
        """Add the `COUNTS` of a shard; return the `SEEN` of its codes before it."""
        ids = self.add_names(counts)
        seen = self._seen(np.unique(ids))
        chunks = counts["chunk"].to_numpy()
        columns = [counts[name].to_numpy() for name in COUNTS.names[2:7]]
        edges = np.flatnonzero(np.r_[True, chunks[1:] != chunks[:-1], True])[: len(ids) + 1]
        for start, stop in itertools.pairwise(edges.tolist()):
            self._add_chunk(ids[start:stop], *(column[start:stop] for column in columns))
        return seen

    def join(self, group: pa.Table) -> pa.Table:
        """Add the `JOINED` of a group of shards; return the `SEEN` of its codes before it."""
        ids = self.add_names(group)
        seen = self._seen(ids)
        first = self._num_values[ids] == 0
        columns = [group[name].to_numpy() for name in JOINED.names[1:]]
        self._add_chunk(ids, *columns)
        # What is merged with nothing stays as it is; n * mean / n would be rounded.
        self._mean[ids] = np.where(first, columns[3], self._mean[ids])
        return seen

    def joined(self) -> pa.Table:
        """Return the `JOINED` of what was added."""
        numbers = [self._count, self._num_subjects, self._num_values, self._mean, self._squares]
        return pa.table([pa.array(list(self._names), pa.string()), *numbers], schema=JOINED)

    def _seen(self, ids: npt.NDArray[np.int64]) -> pa.Table:
        names = pa.array(list(self._names), pa.string()).take(pa.array(ids))
        return pa.table([names, self._num_values[ids]], schema=SEEN)

    def _add_chunk(
        self,
        at: npt.NDArray[np.int64],
        count: npt.NDArray[np.int64],
        subjects: npt.NDArray[np.int64],
        n: npt.NDArray[np.int64],
        mean: npt.NDArray[np.float64],
        squares: npt.NDArray[np.float64],
    ) -> None:
        before = self._num_values[at]
        total = np.maximum(before + n, 1)
        delta = mean - self._mean[at]
        self._squares[at] += squares + delta**2 * before * n / total
        self._mean[at] += np.where(n > 0, delta * n / total, 0.0)
        self._num_values[at] += n
        self._count[at] += count
        self._num_subjects[at] += subjects

    def strides(self) -> pa.Table:
        """Return the `STRIDES` of all codes, once every shard is added."""
        return pa.table([pa.array(list(self._names), pa.string()), self._stride()], schema=STRIDES)

    def _stride(self) -> npt.NDArray[np.int64]:
        return np.maximum(-(-self._num_values // QUANTILE_SAMPLE), 1)

    def ranges(self) -> list[tuple[str, str]]:
        """Return runs of codes, by the first and the last, whose samples a process can hold."""
        order = sorted(self._names)
        if not order:
            return []
        ids = np.array([self._names[name] for name in order], np.int64)
        ends = np.cumsum(self._num_values[ids] // self._stride()[ids])
        owner = np.maximum(ends - 1, 0) // RANGE_VALUES
        starts = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
        stops = np.r_[starts[1:], len(order)] - 1
        return [(order[a], order[b]) for a, b in zip(starts, stops, strict=True)]

    def table(self, found: Iterable[pa.Table]) -> pa.Table:
        """Return the `CODES` table; `found` has the `FOUND` of all codes that have values."""
        quantiles = {
            code: values
            for table in found
            for code, values in zip(*table.to_pydict().values(), strict=True)
        }
        order = sorted(self._names)
        ids = np.array([self._names[name] for name in order], np.int64)
        seen = self._num_values[ids] > 0
        variance = self._squares / np.maximum(self._num_values, 1)
        table = pa.table(
            {
                "code": pa.array(order, pa.string()),
                "description": pa.nulls(len(order), pa.string()),
                "parent_codes": pa.nulls(len(order), pa.list_(pa.string())),
                "count": self._count[ids],
                "num_subjects": self._num_subjects[ids],
                "num_values": self._num_values[ids],
                "mean": pa.array(self._mean[ids], mask=~seen),
                "std": pa.array(np.sqrt(variance[ids]), mask=~seen),
                "quantiles": pa.array(
                    [quantiles.get(code) for code in order], pa.list_(pa.float64())
                ),
            }
        )
        return table.cast(CODES).replace_schema_metadata({FITTED: b"train"})


@dataclass(frozen=True)
class SampleFolder:
    """A folder by which jobs fit codes, in this order: `count`, `join`, `draw`, `find`, `found`.

        seen/<name>.parquet       SEEN by a shard of train, within its group
        sample/<name>.parquet     SAMPLES of it
        joined/<group>.parquet    JOINED of a group
               <group>-before.parquet  SEEN by it
               strides.parquet    STRIDES
        found/<n>.parquet         FOUND of a range of codes

    Args:
        path: of the folder.
    """

    path: Path

    def count(
        self, group: int, train: Iterable[tuple[str, pa.Table]], other: Iterable[pa.Table]
    ) -> None:
        """Join a group: `GROUP_SHARDS` shards, of which those of train are a group of `fit_codes`.

        `train` are a name and the `COUNTS` of each, in order; `other` are those of shards of which
        the names of codes alone are wanted. A shard's are held at a time.
        """
        fit = CodeFit()
        for name, counts in train:
            files.write_parquet(fit.add(counts), self.seen(name))
        for counts in other:
            fit.add_names(counts)
        files.write_parquet(fit.joined(), self.counted(group))

    def join(self, groups: int) -> CodeFit:
        """Return the fit of all groups, and leave what samples are drawn by."""
        fit = CodeFit()
        for group in range(groups):
            before = fit.join(files.open_parquet(self.counted(group)).read())
            files.write_parquet(before, self._before(group))
        files.write_parquet(fit.strides(), self._strides)
        return fit

    def draw(self, name: str, group: int, shard: Path) -> None:
        """Leave the values of a shard that the quantiles are of."""
        seen, before, strides = (files.open_parquet(p).read() for p in self.needed(name, group))
        files.write_parquet(sample_values(shard, summed(seen, before), strides), self.sample(name))

    def find(self, number: int, codes: tuple[str, str], names: Iterable[str]) -> None:
        """Leave the quantiles of a range of codes, of what `draw` left of all shards, in order."""
        files.write_parquet(quantiles_of(self._drawn(codes, names)), self.quantiles(number))

    def found(self, ranges: int) -> Iterator[pa.Table]:
        """Yield what `find` left."""
        return (files.open_parquet(self.quantiles(number)).read() for number in range(ranges))

    def counted(self, group: int) -> Path:
        """Return the file that `count` leaves last."""
        return self.joined / f"{group:06d}.parquet"

    def needed(self, name: str, group: int) -> tuple[Path, Path, Path]:
        """Return the files that `draw` reads."""
        return self.seen(name), self._before(group), self._strides

    def sample(self, name: str) -> Path:
        """Return the file that `draw` leaves."""
        return self.path / "sample" / f"{name}.parquet"

    def quantiles(self, number: int) -> Path:
        """Return the file that `find` leaves."""
        return self.path / "found" / f"{number:06d}.parquet"

    @property
    def joined(self) -> Path:
        """What the process that joins reads and leaves."""
        return self.path / "joined"

    def _drawn(self, codes: tuple[str, str], names: Iterable[str]) -> Iterator[pa.Table]:
        first, last = codes
        for name in names:
            sample = files.open_parquet(self.sample(name)).read()
            code = sample["code"]
            yield sample.filter(pc.and_(pc.greater_equal(code, first), pc.less_equal(code, last)))

    def seen(self, name: str) -> Path:
        """Return the file that `count` leaves of a shard of train."""
        return self.path / "seen" / f"{name}.parquet"

    def _before(self, group: int) -> Path:
        return self.joined / f"{group:06d}-before.parquet"

    @property
    def _strides(self) -> Path:
        return self.joined / "strides.parquet"


class _Span:
    """The first and the last time of events, in microseconds since 1970."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.last: int | None = None

    def add(self, batch: pa.Table) -> npt.NDArray[np.bool_]:
        """Add the times of a batch; return which events are static, [E]."""
        if "time" not in batch.column_names:
            return np.ones(len(batch), bool)
        # Nanoseconds of others are cut, as nobody reads them.
        time = batch["time"].cast(pa.timestamp("us"), safe=False)
        known = time.drop_null().cast(pa.int64()).to_numpy()
        if len(known):
            first, last = int(known.min()), int(known.max())
            self.first = first if self.first is None else min(first, self.first)
            self.last = last if self.last is None else max(last, self.last)
        return np.asarray(time.is_null().to_numpy(zero_copy_only=False))


class _Subjects:
    """How many subjects have each code; their events follow each other, and a chunk may end there.

    Attributes:
        total: subjects with any event.
        number: of subjects with any event of each code, a timed one, a static one; int64 [3, V].
    """

    def __init__(self) -> None:
        self.total = 0
        self.number = np.zeros((3, 0), np.int64)
        self._last: int | None = None  # the subject that the chunk before ended with
        self._kinds_of_last = np.zeros(0, np.int64)

    def add(
        self, codes: npt.NDArray[Any], subjects: npt.NDArray[Any], static: npt.NDArray[Any]
    ) -> None:
        """Add a chunk's events: code, subject, and whether it is static, each [E]."""
        if not len(codes):
            return
        size = max(self.number.shape[1], int(codes.max()) + 1)
        self.number = np.pad(self.number, ((0, 0), (0, size - self.number.shape[1])))
        run = np.cumsum(np.diff(subjects, prepend=subjects[0]) != 0)
        # A kind is a code, timed or static: 2 * code + static.
        kinds = _distinct(np.sort((run * size + codes) * 2 + static))
        goes_on = bool(subjects[0] == self._last)
        known = self._kinds_of_last if goes_on else self._kinds_of_last[:0]  # kinds of run 0
        self.total += int(run[-1]) + 1 - goes_on
        new = np.setdiff1d(kinds, known, assume_unique=True)
        both = np.bincount(new % (2 * size), minlength=2 * size).reshape(size, 2)
        self.number[1:] += both.T
        pairs = _distinct(kinds // 2)
        new = np.setdiff1d(pairs, _distinct(known // 2), assume_unique=True)
        self.number[0] += np.bincount(new % size, minlength=size)
        ended = kinds[kinds >= run[-1] * size * 2] % (2 * size)
        self._kinds_of_last = np.union1d(known, ended) if run[-1] == 0 else ended
        self._last = subjects[-1]


def _distinct(ascending: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return ascending[np.diff(ascending, prepend=-1) != 0]


def _read(
    path: Path, names: dict[str, int], beside: Sequence[str] = ()
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], pa.Table]]:
    """Yield (codes, values, table) chunk by chunk, the first two a number an event.

    A code's id is its place in order of first appearance; extends `names`. The table has the
    columns named `beside`, where the shard has them.
    """
    try:
        file = files.open_parquet(path)
        valued = "numeric_value" in file.schema_arrow.names
        columns = [*beside, "code", *(["numeric_value"] if valued else [])]
        if missing := {*columns} - {"time", *file.schema_arrow.names}:
            raise InputError(f"{path}: no column {missing.pop()!r}; ingest the cohort again")
        for batches in _chunks(path, file.metadata, columns):
            ids = np.concatenate([_numbered(batch["code"], names) for batch in batches])
            table = pa.Table.from_batches(batches).drop_columns("code").combine_chunks()
            none = np.full(len(ids), np.nan, np.float32)
            yield ids, as_float32(table["numeric_value"]) if valued else none, table
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise files.unreadable(path, error, "ingest the cohort again") from error


def _chunks(
    path: Path, metadata: pq.FileMetaData, columns: Sequence[str]
) -> Iterator[list[pa.RecordBatch]]:
    """Yield the batches of `CHUNK_ROWS` rows at a time, codes as the numbers Parquet has of them.

    So read they end with each row group, and a text an event is not made.
    """
    file = pq.ParquetFile(
        path, metadata=metadata, page_checksum_verification=True, read_dictionary=["code"]
    )
    waiting: list[pa.RecordBatch] = []
    room = CHUNK_ROWS
    for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
        while len(batch):
            waiting.append(batch.slice(0, room))
            batch = batch.slice(room)
            room -= len(waiting[-1])
            if not room:
                yield waiting
                waiting, room = [], CHUNK_ROWS
    if waiting:
        yield waiting


def _numbered(column: pa.Array, names: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return the id of each code, after adding those that are new to `names`."""
    encoded = column.dictionary_encode()  # which one with a dictionary is already
    at = encoded.indices.to_numpy()
    words = encoded.dictionary.to_pylist()
    local = np.full(len(words), -1, np.int64)
    for place in np.flatnonzero(np.bincount(at, minlength=len(words))).tolist():
        local[place] = names.setdefault(words[place], len(names))
    return local[at]
