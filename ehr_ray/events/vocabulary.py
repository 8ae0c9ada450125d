"""Codes and their value statistics, fitted on the train split only."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.scaling import Scaling, location_and_scale
from ehr_ray.events.schema import ORIGIN_CODES, is_origin
from ehr_ray.storage import files

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
QUANTILE_SAMPLE = 20_000
"""Values kept per code for the quantiles: exact up to here, evenly thinned above."""
_NORMAL = np.array([-2.326, -1.645, -0.674, 0.0, 0.674, 1.645, 2.326])
"""Quantiles of the standard normal distribution at `QUANTILES`."""

CODES = pa.schema(
    [
        pa.field("code", pa.string()),
        pa.field("description", pa.string()),
        pa.field("parent_codes", pa.list_(pa.string())),
        pa.field("count", pa.int64()),
        pa.field("num_subjects", pa.int64()),
        pa.field("num_values", pa.int64()),
        pa.field("mean", pa.float64()),
        pa.field("std", pa.float64()),
        pa.field("quantiles", pa.list_(pa.float64())),
    ]
)
"""`metadata/codes.parquet`: MEDS code metadata with train statistics; sorted by code.

`num_subjects` are those with at least one event; `std` is the population standard deviation;
`quantiles` are those of `QUANTILES`.
"""

FITTED = b"ehr_ray.fitted"
"""Key of the schema's metadata that marks statistics as fitted here, on the train split."""
ORIGIN = b"ehr_ray.origin"
"""Key of the schema's metadata with the origin codes, a JSON list, where they are not the usual."""
SCALING = b"ehr_ray.scaling"
"""Key of the schema's metadata with how values are scaled, in the vocabulary of a checkpoint."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Codes in lexicographic order (the id is the position) with the statistics that scale values.

    Args:
        codes: the known codes, ascending, so that ordering by id is ordering by name.
        count: events of each code in train, int64 [V].
        mean: mean of its values in train, float64 [V]; 0 where it has none.
        std: their population standard deviation, float64 [V]; 1 where it is 0 or unknown.
        quantiles: those of `QUANTILES`, float64 [V, 7]; NaN for codes without values in train.
        descriptions: what each code is, [V]; empty where nothing is said.
        origin: codes whose first event is minute 0, alone or before a slash; none is a token.
        scaling: whether values are scaled by median and quantiles, or by mean and `std`.
        subjects: train subjects with each code, int64 [V]; `count` where a cohort does not tell.
    """

    codes: tuple[str, ...]
    count: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]
    quantiles: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    descriptions: tuple[str, ...] = ()
    origin: tuple[str, ...] = ORIGIN_CODES
    scaling: Scaling = "robust"
    subjects: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        """Fill in what was left out: no values, no descriptions."""
        if len(self.quantiles) != len(self.codes):
            missing = np.full((len(self.codes), len(QUANTILES)), np.nan)
            object.__setattr__(self, "quantiles", missing)
        if len(self.descriptions) != len(self.codes):
            object.__setattr__(self, "descriptions", ("",) * len(self.codes))
        if len(self.subjects) != len(self.codes):
            object.__setattr__(self, "subjects", self.count)

    def __len__(self) -> int:
        """Return the number of codes."""
        return len(self.codes)

    @cached_property
    def valued(self) -> npt.NDArray[np.bool_]:
        """Whether a code has values in train, [V]."""
        return np.asarray(np.isfinite(self.quantiles).all(1), bool)

    @property
    def location(self) -> npt.NDArray[np.float64]:
        """What each code's values are centred at, float64 [V]; see `events/scaling.py`."""
        return self._scales[0]

    @property
    def scale(self) -> npt.NDArray[np.float64]:
        """What they are divided by then, float64 [V], above 0."""
        return self._scales[1]

    @cached_property
    def _scales(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        return location_and_scale(self.scaling, self.mean, self.std, self.quantiles)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {code: i for i, code in enumerate(self.codes)}

    def encode(self, codes: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the id of each code, -1 where it is unknown."""
        ids = self._ids
        return np.fromiter((ids.get(code, -1) for code in codes), np.int32, len(codes))

    @classmethod
    def from_table(
        cls,
        table: pa.Table,
        *,
        min_count: int = 0,
        origin: Sequence[str] | None = None,
        scaling: Scaling = "robust",
    ) -> "Vocabulary":
        """Build from a `codes.parquet` table: codes seen at least `min_count` times, no origins.

        `origin` are the codes of the time origin; None: those the table names, else the usual.
        """
        origin = origin_of(table) if origin is None else tuple(origin)
        token = [not is_origin(code, origin) for code in table["code"].to_pylist()]
        known = (_column(table, "count", 0) >= min_count) & np.array(token, bool)
        table = table.filter(pa.array(known)).sort_by("code")
        mean, std = _column(table, "mean", np.nan), _column(table, "std", np.nan)
        return cls(
            codes=tuple(table["code"].to_pylist()),
            count=_column(table, "count", 0).astype(np.int64),
            mean=np.where(np.isfinite(mean), mean, 0.0),
            std=np.where(np.isfinite(std) & (std > 0), std, 1.0),
            quantiles=_quantile_column(table, mean, std),
            descriptions=_descriptions(table),
            origin=origin,
            scaling=scaling,
            subjects=_subjects(table),
        )

    def to_table(self) -> pa.Table:
        """Return the columns `from_table` needs; `scaling_of` tells how they scale values."""
        table = pa.table(
            {
                "code": pa.array(self.codes, pa.string()),
                "count": self.count,
                "num_subjects": self.subjects,
                "mean": self.mean,
                "std": self.std,
                "quantiles": pa.array(
                    [None if np.isnan(row).any() else row.tolist() for row in self.quantiles],
                    pa.list_(pa.float64()),
                ),
                "description": pa.array(self.descriptions, pa.string()),
            }
        )
        table = with_origin(table, self.origin)
        named = {**(table.schema.metadata or {}), SCALING: self.scaling}
        return table.replace_schema_metadata(named)


def scaling_of(table: pa.Table) -> Scaling | None:
    """Return how a checkpoint's vocabulary scales values; None where it does not say."""
    named = (table.schema.metadata or {}).get(SCALING)
    return None if named is None else "standard" if named == b"standard" else "robust"


def origin_of(table: pa.Table) -> tuple[str, ...]:
    """Return the origin codes a `codes.parquet` table names, else the usual ones."""
    named = (table.schema.metadata or {}).get(ORIGIN)
    return ORIGIN_CODES if named is None else tuple(json.loads(named))


def with_origin(table: pa.Table, origin: Sequence[str]) -> pa.Table:
    """Return the table with the origin codes in its schema; the usual ones need no saying."""
    if tuple(origin) == ORIGIN_CODES:
        return table
    named = {**(table.schema.metadata or {}), ORIGIN: json.dumps(list(origin))}
    return table.replace_schema_metadata(named)


def is_fitted(table: pa.Table) -> bool:
    """Whether a `codes.parquet` table has statistics of `fit_codes`, not of another maker."""
    return FITTED in (table.schema.metadata or {})


def described(table: pa.Table, said: pa.Table) -> pa.Table:
    """Return the `CODES` table with `description` and `parent_codes` of another by code.

    What `said` has not, or says of a code nothing, is left as it is.
    """
    keys = said["code"].cast(pa.string()).to_pylist()
    for name in ("description", "parent_codes"):
        if name not in said.column_names:
            continue
        known = {k: v for k, v in zip(keys, said[name].to_pylist(), strict=True) if v is not None}
        rows = zip(table["code"].to_pylist(), table[name].to_pylist(), strict=True)
        values = [known.get(code, value) for code, value in rows]
        if name == "parent_codes":  # some write the one parent as text
            values = [[v] if isinstance(v, str) else v for v in values]
        place = table.schema.get_field_index(name)
        field = table.schema.field(place)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


def as_float32(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """Return numbers as float32; NaN where there is none, or none that float32 holds."""
    values = column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    return np.where(np.isinf(narrow), np.float32(np.nan), narrow)


def _column(table: pa.Table, name: str, missing: float) -> npt.NDArray:
    return table[name].fill_null(missing).to_numpy()


def _quantile_column(
    table: pa.Table, mean: npt.NDArray, std: npt.NDArray
) -> npt.NDArray[np.float64]:
    """Return the quantiles [V, 7]; where a table has none, those of a normal distribution."""
    wanted = len(QUANTILES)
    result: npt.NDArray[np.float64] = mean[:, None] + np.nan_to_num(std)[:, None] * _NORMAL
    if "quantiles" not in table.column_names:
        return result
    for row, values in enumerate(table["quantiles"].to_pylist()):
        whole = values is not None and len(values) == wanted
        result[row] = values if whole else np.nan
    return result


def _subjects(table: pa.Table) -> npt.NDArray[np.int64]:
    name = "num_subjects" if "num_subjects" in table.column_names else "count"
    return _column(table, name, 0).astype(np.int64)


def _descriptions(table: pa.Table) -> tuple[str, ...]:
    if "description" not in table.column_names:
        return ("",) * len(table)
    return tuple(text or "" for text in table["description"].to_pylist())


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
