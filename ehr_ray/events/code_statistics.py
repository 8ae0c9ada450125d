"""Statistics of codes, fitted on train: shards are counted and sampled one by one, then joined."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import CODES, FITTED, QUANTILES, as_float32
from ehr_ray.storage import files

QUANTILE_SAMPLE = 20_000
"""Values kept per code for the quantiles: exact up to here, evenly thinned above."""


def fit_codes(shards: Iterable[Path], other: Iterable[Path] = ()) -> pa.Table:
    """Return the `CODES` table: statistics from `shards` (train), names from `other` as well.

    Numbers that float32 does not hold count as missing, as they do where values are read.
    Memory is bounded by the number of codes, not of events: two passes over the shards, one after
    the other. `SampleFolder` does the same by jobs of shards.
    """
    fit, shards = CodeFit(), list(shards)
    before = [fit.add(count_shard(path).codes) for path in shards]
    for path in other:
        fit.add_names(count_shard(path).codes)
    strides = fit.strides()
    return fit.table(
        sample_values(path, seen, strides) for path, seen in zip(shards, before, strict=True)
    )


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

SEEN = pa.schema([pa.field("code", pa.string()), pa.field("num_values", pa.int64())])
"""How many values of a code come in the shards before one."""

STRIDES = pa.schema([pa.field("code", pa.string()), pa.field("stride", pa.int64())])
"""Of how many values of a code one is kept for its quantiles."""

SAMPLES = pa.schema([pa.field("code", pa.string()), pa.field("values", pa.list_(pa.float32()))])
"""The values of a shard that are kept, by code."""


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
        subjects.add(codes, batch["subject_id"].to_numpy(zero_copy_only=False), timeless)
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
        order = np.argsort(codes, kind="stable")
        codes, values = codes[order], values[order]
        starts = np.searchsorted(codes, codes)
        position = np.arange(len(codes)) - starts + before[codes]
        take = position % stride[codes] == 0
        kept.append((codes[take], values[take]))
        before += np.bincount(codes, minlength=len(before))
    codes, values = (np.concatenate(pieces) for pieces in zip(*kept, strict=True))
    order = np.argsort(codes, kind="stable")
    there, starts = np.unique(codes[order], return_index=True)
    lists = pa.ListArray.from_arrays(
        pa.array(np.r_[starts, len(codes)], pa.int32()), pa.array(values[order])
    )
    return pa.table([pa.array(list(names)).take(pa.array(there)), lists], schema=SAMPLES)


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
        there = np.unique(ids)
        codes = list(self._names)
        seen = pa.table(
            [pa.array([codes[i] for i in there], pa.string()), self._num_values[there]], schema=SEEN
        )
        chunks = counts["chunk"].to_numpy()
        columns = [counts[name].to_numpy() for name in COUNTS.names[2:7]]
        edges = np.flatnonzero(np.r_[True, chunks[1:] != chunks[:-1], True])[: len(ids) + 1]
        for start, stop in itertools.pairwise(edges.tolist()):
            self._add_chunk(ids[start:stop], *(column[start:stop] for column in columns))
        return seen

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
        stride = np.maximum(-(-self._num_values // QUANTILE_SAMPLE), 1)
        return pa.table([pa.array(list(self._names), pa.string()), stride], schema=STRIDES)

    def table(self, samples: Iterable[pa.Table]) -> pa.Table:
        """Return the `CODES` table; `samples` are those of all shards that were added."""
        kept: dict[str, list[npt.NDArray[Any]]] = {}
        for sample in samples:
            for code, values in zip(sample["code"].to_pylist(), sample["values"], strict=True):
                kept.setdefault(code, []).append(values.values.to_numpy())
        quantiles = {
            code: np.quantile(np.concatenate(pieces).astype(np.float64), QUANTILES).tolist()
            for code, pieces in kept.items()
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
    """A folder by which jobs of shards fit codes: `join`, then `draw` of each shard, then `drawn`.

        <name>-seen.parquet     SEEN by a shard
        <name>-sample.parquet   SAMPLES of it
        strides.parquet         STRIDES

    Args:
        path: of the folder.
    """

    path: Path

    def join(self, train: Iterable[tuple[str, pa.Table]], other: Iterable[pa.Table]) -> CodeFit:
        """Return the fit of shards, and leave what their samples are drawn by.

        `train` are a name and the `COUNTS` of each shard, in order; `other` are those of shards of
        which the names of codes alone are wanted. A shard's are held at a time.
        """
        fit = CodeFit()
        for name, counts in train:
            files.write_parquet(fit.add(counts), self._seen(name))
        for counts in other:
            fit.add_names(counts)
        files.write_parquet(fit.strides(), self._strides)
        return fit

    def draw(self, name: str, shard: Path) -> None:
        """Leave the values of a shard that the quantiles are of."""
        seen, strides = (files.open_parquet(p).read() for p in (self._seen(name), self._strides))
        files.write_parquet(sample_values(shard, seen, strides), self.sample(name))

    def drawn(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """Yield what `draw` left of shards."""
        return (files.open_parquet(self.sample(name)).read() for name in names)

    def sample(self, name: str) -> Path:
        """Return the file that `draw` leaves."""
        return self.path / f"{name}-sample.parquet"

    def needed(self, name: str) -> tuple[Path, Path]:
        """Return the files that `draw` reads."""
        return self._seen(name), self._strides

    def _seen(self, name: str) -> Path:
        return self.path / f"{name}-seen.parquet"

    @property
    def _strides(self) -> Path:
        return self.path / "strides.parquet"


class _Span:
    """The first and the last time of events, in microseconds since 1970."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.last: int | None = None

    def add(self, batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        """Add the times of a batch; return which events are static, [E]."""
        if "time" not in batch.schema.names:
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
        kinds = np.unique((run * size + codes) * 2 + static)
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
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], pa.RecordBatch]]:
    """Yield (codes, values, batch) chunk by chunk, the first two a number an event.

    A code's id is its place in order of first appearance; extends `names`. The batch has the
    columns named `beside`, where the shard has them.
    """
    try:
        file = files.open_parquet(path)
        valued = "numeric_value" in file.schema_arrow.names
        columns = [*beside, "code", *(["numeric_value"] if valued else [])]
        if missing := {*columns} - {"time", *file.schema_arrow.names}:
            raise InputError(f"{path}: no column {missing.pop()!r}; ingest the cohort again")
        for batch in file.iter_batches(1 << 19, columns=columns):
            encoded = batch["code"].dictionary_encode()
            local = [names.setdefault(n, len(names)) for n in encoded.dictionary.to_pylist()]
            ids = np.array(local, np.int64)[encoded.indices.to_numpy()]
            none = np.full(len(ids), np.nan, np.float32)
            yield ids, as_float32(batch["numeric_value"]) if valued else none, batch
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise files.unreadable(path, error, "ingest the cohort again") from error
