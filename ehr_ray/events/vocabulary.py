"""Codes, their table, and what of its statistics a model reads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ehr_ray.events.scaling import Scaling, location_and_scale
from ehr_ray.events.schema import ORIGIN_CODES, is_birth, is_origin

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
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

    @cached_property
    def births(self) -> npt.NDArray[np.bool_]:
        """Whether a code marks a birth, [V]."""
        return np.array([is_birth(code) for code in self.codes], bool)

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
    if column.type != pa.float32():
        column = column.cast(pa.float64())
    values = column.fill_null(np.nan).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32, copy=False)
    return np.where(np.isinf(narrow), np.float32(np.nan), narrow)


def _column(table: pa.Table, name: str, missing: float) -> npt.NDArray[Any]:
    return table[name].fill_null(missing).to_numpy()


def _quantile_column(
    table: pa.Table, mean: npt.NDArray[Any], std: npt.NDArray[Any]
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
