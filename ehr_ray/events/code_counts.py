"""What one shard tells of its codes: events, subjects, moments of values, by one pass over it."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.code_chunks import code_chunks
from ehr_ray.storage import files

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
    for chunk, (codes, values, batch) in enumerate(
        code_chunks(path, names, ["subject_id", "time"])
    ):
        size = len(names)
        with files.reads(path, "ingest the cohort again"):
            timeless = span.add(batch)
        subjects.add(codes, batch["subject_id"].to_numpy(), timeless)
        finite = np.isfinite(values)
        valued, known = codes[finite], values[finite].astype(np.float64)
        n = np.bincount(valued, minlength=size)
        mean = np.bincount(valued, known, size) / np.maximum(n, 1)
        # About the chunk's own mean: a sum of squares less the square of a sum would lose digits.
        squares = np.bincount(valued, (known - mean[valued]) ** 2, size)
        count = np.bincount(codes, minlength=size)
        there = np.flatnonzero(count)
        pieces.append([there, np.full(len(there), chunk), *(x[there] for x in (count, n))])
        pieces[-1] += [mean[there], squares[there]]
    if not pieces:
        return ShardCounts(0, 0, None, None, COUNTS.empty_table())
    ids, chunks, count, n, mean, squares = map(np.concatenate, zip(*pieces, strict=True))
    # A subject may have a code in several chunks: it is told with the first row of the code, so
    # that whoever adds rows up counts nobody twice.
    _, first = np.unique(ids, return_index=True)
    number = np.zeros((3, len(ids)), np.int64)
    number[:, first] = subjects.number[:, ids[first]]
    any_event, timed, static = number
    columns = [chunks, count, any_event, n, mean, squares, timed, static]
    table = pa.table([pa.array(list(names)).take(pa.array(ids)), *columns], schema=COUNTS)
    return ShardCounts(subjects.total, int(count.sum()), span.first, span.last, table)


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
