"""Statistics of codes, fitted on train: shards are counted and sampled one by one, then joined."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.code_counts import COUNTS, count_shard
from ehr_ray.events.code_quantiles import SEEN, STRIDES, quantiles_of, sample_values, summed
from ehr_ray.events.vocabulary import CODES, FITTED

QUANTILE_SAMPLE = 20_000
"""Values kept per code for the quantiles: exact up to here, evenly thinned above."""
GROUP_SHARDS = 64
"""Shards of train whose moments are added one after the other; then such groups are. Sums of floats
depend on their order, and this one is the same however many processes there are."""
RANGE_VALUES = 16_000_000
"""Values of which a process takes the quantiles at a time."""

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


def fit_codes(shards: Iterable[Path], other: Iterable[Path] = ()) -> pa.Table:
    """Return the `CODES` table: statistics from `shards` (train), names from `other` as well.

    Numbers that float32 does not hold count as missing, as they do where values are read.
    Memory is bounded by the number of codes, not of events: two passes over the shards, one after
    the other. `SampleFolder` does the same by jobs of shards.
    """
    fit, shards = CodeFit(), list(shards)
    seen: list[pa.Table] = []
    for start in range(0, len(shards), GROUP_SHARDS):
        # Added in groups as jobs add them, or the last digits would differ from theirs.
        group = CodeFit()
        within = [group.add(count_shard(path).codes) for path in shards[start:][:GROUP_SHARDS]]
        before = fit.join(group.joined())
        seen += [summed(each, before) for each in within]
    for path in other:
        fit.add_names(count_shard(path).codes)
    strides = fit.strides()
    samples = (sample_values(path, each, strides) for path, each in zip(shards, seen, strict=True))
    return fit.table([quantiles_of(samples)])


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
        # One chunk after the other, as `_add_chunk` takes a code once.
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
        # `at` has no id twice: by index `+=` would add the last one alone.
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
        # Whole codes: one belongs to the range that the last value of its sample falls into.
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
