"""Codes and their value statistics, fitted on the train split only."""

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
    Memory is bounded by the number of codes, not of events: two passes over the shards.
    """
    shards = list(shards)
    names: dict[str, int] = {}
    moments = _Moments()
    for codes, values, subjects in _read(shards, names):
        moments.add(codes, values, len(names))
        moments.add_subjects(codes, subjects)
    for _ in _read(other, names):
        pass
    moments.add(np.empty(0, np.int64), np.empty(0), len(names))
    quantiles = _quantiles(shards, names, moments.num_values)
    order = sorted(names)
    ids = np.array([names[name] for name in order], np.int64)
    seen = moments.num_values[ids] > 0
    table = pa.table(
        {
            "code": pa.array(order, pa.string()),
            "description": pa.nulls(len(order), pa.string()),
            "parent_codes": pa.nulls(len(order), pa.list_(pa.string())),
            "count": moments.count[ids],
            "num_subjects": moments.num_subjects[ids],
            "num_values": moments.num_values[ids],
            "mean": pa.array(moments.mean[ids], mask=~seen),
            "std": pa.array(np.sqrt(moments.variance[ids]), mask=~seen),
            "quantiles": pa.array([quantiles.get(i) for i in ids], pa.list_(pa.float64())),
        }
    )
    return table.cast(CODES).replace_schema_metadata({FITTED: b"train"})


class _Moments:
    """Count, mean and variance per code, merged chunk by chunk (Chan et al. 1983, eq. 1.5).

    The events of a subject follow each other; a chunk may end among them.
    """

    def __init__(self) -> None:
        self.count = np.zeros(0, np.int64)
        self.num_subjects = np.zeros(0, np.int64)
        self._last: int | None = None  # the subject that the chunk before ended with
        self._codes_of_last = np.zeros(0, np.int64)
        self.num_values = np.zeros(0, np.int64)
        self.mean = np.zeros(0)
        self.squares = np.zeros(0)

    def add(self, codes: npt.NDArray, values: npt.NDArray, size: int) -> None:
        grow = size - len(self.count)
        for name in ("count", "num_subjects", "num_values", "mean", "squares"):
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.zeros(grow, array.dtype)]))
        self.count += np.bincount(codes, minlength=size)
        finite = np.isfinite(values)
        codes, values = codes[finite], values[finite].astype(np.float64)
        n = np.bincount(codes, minlength=size)
        mean = np.bincount(codes, values, size) / np.maximum(n, 1)
        squares = np.bincount(codes, (values - mean[codes]) ** 2, size)
        total = np.maximum(self.num_values + n, 1)
        delta = mean - self.mean
        self.squares += squares + delta**2 * self.num_values * n / total
        self.mean += np.where(n > 0, delta * n / total, 0.0)
        self.num_values += n

    def add_subjects(self, codes: npt.NDArray, subjects: npt.NDArray) -> None:
        """Count the subjects of each code of a chunk that was added."""
        if not len(codes):
            return
        size = len(self.count)
        run = np.cumsum(np.diff(subjects, prepend=subjects[0]) != 0)
        pairs = np.unique(run * size + codes)
        goes_on = subjects[0] == self._last
        known = self._codes_of_last if goes_on else self._codes_of_last[:0]  # pairs of run 0
        self.num_subjects += np.bincount(
            np.setdiff1d(pairs, known, assume_unique=True) % size, minlength=size
        )
        ended = pairs[pairs >= run[-1] * size] % size
        self._codes_of_last = np.union1d(known, ended) if run[-1] == 0 else ended
        self._last = subjects[-1]

    @property
    def variance(self) -> npt.NDArray[np.float64]:
        return self.squares / np.maximum(self.num_values, 1)


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


def _quantiles(
    shards: Sequence[Path], names: dict[str, int], num_values: npt.NDArray[np.int64]
) -> dict[int, list[float]]:
    stride = np.maximum(-(-num_values // QUANTILE_SAMPLE), 1)
    seen = np.zeros(len(num_values), np.int64)
    kept: list[tuple[npt.NDArray, npt.NDArray]] = []
    for codes, values, _ in _read(shards, names):
        finite = np.isfinite(values)
        codes, values = codes[finite], values[finite]
        order = np.argsort(codes, kind="stable")
        codes, values = codes[order], values[order]
        starts = np.searchsorted(codes, codes)
        position = np.arange(len(codes)) - starts + seen[codes]
        take = position % stride[codes] == 0
        kept.append((codes[take], values[take]))
        seen += np.bincount(codes, minlength=len(seen))
    if not kept:
        return {}
    codes = np.concatenate([c for c, _ in kept])
    values = np.concatenate([v for _, v in kept]).astype(np.float64)
    order = np.argsort(codes, kind="stable")
    groups = np.split(values[order], np.flatnonzero(np.diff(codes[order])) + 1)
    present = np.unique(codes)
    return {
        int(code): np.quantile(group, QUANTILES).tolist()
        for code, group in zip(present, groups, strict=False)
        if len(group)
    }
