"""Statistics of codes, fitted on train: shards are counted and sampled one by one, then joined."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

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
    the other. `CodeFit` takes what `count_codes` and `sample_values` give of shards elsewhere.
    """
    fit, shards = CodeFit(), list(shards)
    before = [fit.add(count_codes(path)) for path in shards]
    for path in other:
        fit.add_names(count_codes(path))
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
    ]
)
"""What a shard tells of its codes, a row a code and chunk: `squares` are of distances to `mean`.

Moments are merged chunk by chunk, in order, wherever they come from: sums of floats depend on it.
The subjects of a code stand with its first chunk.
"""

SEEN = pa.schema([pa.field("code", pa.string()), pa.field("num_values", pa.int64())])
"""How many values of a code come in the shards before one."""

STRIDES = pa.schema([pa.field("code", pa.string()), pa.field("stride", pa.int64())])
"""Of how many values of a code one is kept for its quantiles."""

SAMPLES = pa.schema([pa.field("code", pa.string()), pa.field("values", pa.list_(pa.float32()))])
"""The values of a shard that are kept, by code."""


def count_codes(path: Path) -> pa.Table:
    """Return the `COUNTS` of a shard, by code in order of first appearance in each chunk."""
    names: dict[str, int] = {}
    subjects = _Subjects()
    pieces = []
    for chunk, (codes, values, ids) in enumerate(_read([path], names)):
        size = len(names)
        subjects.add(codes, ids, size)
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
        return COUNTS.empty_table()
    ids, chunks, count, n, mean, squares = map(np.concatenate, zip(*pieces, strict=True))
    _, first = np.unique(ids, return_index=True)
    number = np.zeros(len(ids), np.int64)
    number[first] = subjects.number[ids[first]]
    return pa.table(
        [pa.array(list(names)).take(pa.array(ids)), chunks, count, number, n, mean, squares],
        schema=COUNTS,
    )


def sample_values(path: Path, seen: pa.Table, strides: pa.Table) -> pa.Table:
    """Return the `SAMPLES` of a shard: every stride-th value, counted through all shards."""
    names = {code: i for i, code in enumerate(seen["code"].to_pylist())}
    if not names:
        return SAMPLES.empty_table()
    before = seen["num_values"].to_numpy().copy()
    known = dict(zip(*strides.to_pydict().values(), strict=True))
    stride = np.array([known[code] for code in names], np.int64)
    kept: list[tuple[npt.NDArray, npt.NDArray]] = []
    for codes, values, _ in _read([path], names):
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
        columns = [counts[name].to_numpy() for name in COUNTS.names[2:]]
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
        kept: dict[str, list[npt.NDArray]] = {}
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


class _Subjects:
    """How many subjects have each code; their events follow each other, and a chunk may end there.

    Attributes:
        number: of subjects by code, int64 [V].
    """

    def __init__(self) -> None:
        self.number = np.zeros(0, np.int64)
        self._last: int | None = None  # the subject that the chunk before ended with
        self._codes_of_last = np.zeros(0, np.int64)

    def add(self, codes: npt.NDArray, subjects: npt.NDArray, size: int) -> None:
        self.number = np.concatenate([self.number, np.zeros(size - len(self.number), np.int64)])
        if not len(codes):
            return
        run = np.cumsum(np.diff(subjects, prepend=subjects[0]) != 0)
        pairs = np.unique(run * size + codes)
        goes_on = subjects[0] == self._last
        known = self._codes_of_last if goes_on else self._codes_of_last[:0]  # pairs of run 0
        self.number += np.bincount(
            np.setdiff1d(pairs, known, assume_unique=True) % size, minlength=size
        )
        ended = pairs[pairs >= run[-1] * size] % size
        self._codes_of_last = np.union1d(known, ended) if run[-1] == 0 else ended
        self._last = subjects[-1]


def _read(
    shards: Iterable[Path], names: dict[str, int]
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]]:
    """Yield (codes, values, subjects) chunk by chunk, each a number an event; extends `names`.

    A code's id is its place in order of first appearance.
    """
    for path in shards:
        try:
            file = files.open_parquet(path)
            valued = "numeric_value" in file.schema_arrow.names
            columns = ["subject_id", "code", *(["numeric_value"] if valued else [])]
            for batch in file.iter_batches(1 << 19, columns=columns):
                encoded = batch["code"].dictionary_encode()
                local = [names.setdefault(n, len(names)) for n in encoded.dictionary.to_pylist()]
                ids = np.array(local, np.int64)[encoded.indices.to_numpy()]
                none = np.full(len(ids), np.nan, np.float32)
                values = as_float32(batch["numeric_value"]) if valued else none
                yield ids, values, batch["subject_id"].to_numpy(zero_copy_only=False)
        except KeyError as error:
            raise InputError(f"{path}: no column {error}; ingest the cohort again") from error
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise files.unreadable(path, error, "ingest the cohort again") from error
