"""Task labels: as readers give them, and resolved to MEDS label files."""

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.sources.source import LABEL_VALUES

VALUE_TYPES: Final = {
    "boolean_value": pa.bool_(),
    "float_value": pa.float32(),
    "integer_value": pa.int64(),
    "categorical_value": pa.string(),
}

LONG_STAY_HOURS: Final = 7 * 24.0
"""A stay is long beyond this, so its label must be predicted before."""


@dataclass(frozen=True)
class LeftOut:
    """Label rows that made no label: no such subject or time, no answer, or said before.

    `clashing` rows say otherwise than another of their subject and time.
    """

    without_subject: int = 0
    unknown: int = 0
    repeated: int = 0
    clashing: int = 0

    def __add__(self, other: "LeftOut") -> "LeftOut":
        """Return the sums."""
        sums = (getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        return LeftOut(*sums)

    def check(self, task: str) -> None:
        """Raise `InputError` where rows clash."""
        if self.clashing:
            raise InputError(
                f"labels of task {task}: two values of one subject at one time, "
                f"{self.clashing} times; keep one of them"
            )


def label_rows(
    ids: npt.NDArray[np.int64],
    values: Any,
    minute: float | None = None,
    *,
    times: pa.Array | None = None,
    column: str = "boolean_value",
) -> pa.Table:
    """Return a chunk's label rows: at `times`, else `minute` after the origin, else last event."""
    size = len(ids)
    return pa.table(
        {
            "subject_id": pa.array(ids, pa.int64()),
            "prediction_time": pa.nulls(size, pa.timestamp("us")) if times is None else times,
            "minute": pa.array(
                np.full(size, np.nan if minute is None else minute), from_pandas=True
            ),
            column: pa.array(values, VALUE_TYPES[column]),
        }
    )


def resolve(rows: pa.Table, subjects: pa.Table) -> tuple[pa.Table, LeftOut]:
    """Return (MEDS label rows sorted by subject and time, how many rows were left out and why).

    `rows` are labels of one task as `label_rows` gives them; `subjects` has `subject_id`
    (ascending), `origin` and `last`.
    """
    value = rows.column_names[-1]
    assert value in LABEL_VALUES
    unknown = rows[value].null_count
    rows = rows.filter(pc.is_valid(rows[value]))
    ids, known = rows["subject_id"].to_numpy(), subjects["subject_id"].to_numpy()
    at = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
    present = known[at] == ids if len(known) else np.zeros(len(ids), bool)
    rows, at = rows.filter(pa.array(present)), at[present]
    times = _times(rows, subjects, at)
    table = pa.table(
        {"subject_id": rows["subject_id"], "prediction_time": times, value: rows[value]}
    )
    timed = table.filter(pc.is_valid(table["prediction_time"]))
    missing = int((~present).sum()) + len(table) - len(timed)
    table, clashing = _deduplicated(timed)
    return table, LeftOut(missing, unknown, len(timed) - len(table), clashing)


def _times(rows: pa.Table, subjects: pa.Table, at: npt.NDArray[np.intp]) -> pa.Array:
    minutes = rows["minute"].to_numpy()
    offset = np.rint(np.nan_to_num(minutes) * 60e6).astype("timedelta64[us]")
    origin = subjects["origin"].to_numpy()[at] + offset
    last = subjects["last"].to_numpy()[at]
    given = rows["prediction_time"].to_numpy()
    times = np.where(np.isnat(given), np.where(np.isnan(minutes), last, origin), given)
    return pa.array(times.astype("datetime64[us]"))


def _deduplicated(table: pa.Table) -> tuple[pa.Table, int]:
    """Return (the first row of each subject and time, how many others say something else)."""
    order = [("subject_id", "ascending"), ("prediction_time", "ascending")]
    table = table.take(pc.sort_indices(table, sort_keys=order)).combine_chunks()
    keys = [table[name].to_numpy() for name in ("subject_id", "prediction_time")]
    first = np.r_[True, np.logical_or(*(k[1:] != k[:-1] for k in keys))][: len(table)]
    kept = table.filter(pa.array(first))
    owner = np.cumsum(first) - 1
    same = pc.equal(table.column(2), kept.column(2).take(pa.array(owner)))
    return kept, int(np.count_nonzero(~same.to_numpy()))
