"""Events in memory, as people have them: a pandas DataFrame or an Arrow table, in any order."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS, is_zoned

TIMES: Final = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("prediction_time", pa.timestamp("us"), nullable=False),
    ]
)
"""When predictions are wanted, of whom."""
_ARROW: Final = (pa.Table, pa.RecordBatch)
_OPTIONAL: Final = "numeric_value"


def events_of(table: Any) -> pa.Table:
    """Return MEDS events as `EVENTS`, by subject, then time, static ones first.

    Rows of one subject and time stay in the order given. Times with a zone become UTC, nanoseconds
    microseconds; a missing `numeric_value` is a column without values; other columns are dropped.
    `InputError` for anything else that a column may not hold.
    """
    events = _typed(arrow_of(table, "events"), EVENTS, "events")
    time = events["time"].cast(pa.int64()).fill_null(np.iinfo(np.int64).min).to_numpy()
    return events.take(pa.array(np.lexsort((time, events["subject_id"].to_numpy()))))


def times_of(table: Any) -> pa.Table:
    """Return prediction times as `TIMES`, in the order given; columns as those of `events_of`."""
    return _typed(arrow_of(table, "prediction_times"), TIMES, "prediction_times")


def check_zones(events: Any, prediction_times: Any) -> None:
    """Raise `InputError` where times of one table say their zone and those of the other do not.

    Both are as `events_of` and `times_of` read them; of a table without any time nothing is said.
    """
    zoned = {
        what: is_zoned(column.type)
        for table, what, name in (
            (events, "events", "time"),
            (prediction_times, "prediction_times", "prediction_time"),
        )
        if (column := _column(table, what, name)).null_count < len(column)
    }
    if len(set(zoned.values())) > 1:
        one, other = sorted(zoned, key=lambda what: not zoned[what])
        raise InputError(
            f"{one}: times with a zone, but none in {other}; give both with a zone, or none (the "
            "local clock)"
        )


def _column(table: Any, what: str, name: str) -> pa.ChunkedArray:
    """Return one column; of a frame it alone is turned to Arrow."""
    return arrow_of(table if isinstance(table, _ARROW) else table[[name]], what)[name]


def arrow_of(table: Any, what: str) -> pa.Table:
    """Return a pandas DataFrame, Arrow table or record batch as an Arrow table."""
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise InputError(
            f"{what}: a {type(table).__name__}; give a pandas DataFrame or an Arrow table"
        )
    for name in ("time", "prediction_time"):
        # Arrow reads those without a zone as if they had that of the others.
        cells = table.get(name)
        if cells is not None and cells.ndim == 1 and cells.dtype == object:
            zones = {cell.tzinfo is not None for cell in cells.dropna() if hasattr(cell, "tzinfo")}
            if len(zones) > 1:
                raise InputError(
                    f"{what}: {name} has times with a zone and others without; give all with one, "
                    "or none (the local clock)"
                )
    try:
        return pa.Table.from_pandas(table, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise InputError(f"{what}: {error}; give columns of one type each") from error


def like(table: pa.Table, given: Any) -> Any:
    """Return an Arrow table as the kind of table that was given."""
    return table if isinstance(given, _ARROW) else table.to_pandas()


def _typed(table: pa.Table, schema: pa.Schema, what: str) -> pa.Table:
    columns: dict[str, pa.ChunkedArray] = {}
    for field in schema:
        if table.column_names.count(field.name) != 1:
            if field.name == _OPTIONAL and field.name not in table.column_names:
                columns[field.name] = pa.nulls(len(table), field.type)
                continue
            raise InputError(
                f"{what}: {table.column_names.count(field.name)} columns {field.name}; "
                f"give one each of {', '.join(n for n in schema.names if n != _OPTIONAL)}"
            )
        columns[field.name] = _cast(table[field.name], field, what)
    return pa.table(columns, schema=schema)


_FITS: Final[Mapping[pa.DataType, Any]] = {
    pa.int64(): lambda kind: pa.types.is_integer(kind) or pa.types.is_floating(kind),
    pa.timestamp("us"): lambda kind: pa.types.is_timestamp(kind) or pa.types.is_date(kind),
    pa.string(): lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    pa.float32(): lambda kind: (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    ),
}
"""Types that are read as one of a schema."""
_NAMES: Final = {
    pa.int64(): "whole numbers",
    pa.timestamp("us"): "timestamps (pandas.to_datetime makes them)",
    pa.string(): "texts",
    pa.float32(): "numbers",
}


def _cast(column: pa.ChunkedArray, field: pa.Field, what: str) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    wrong = f"{what}: {field.name} is {kind}, which must be {_NAMES[field.type]}"
    if not pa.types.is_null(kind) and not _FITS[field.type](kind):
        raise InputError(wrong)
    # Seconds may be cut, whole numbers may not: 1.5 is nobody's id.
    safe = field.type == pa.int64()
    try:
        typed = column.cast(field.type, safe=safe)
    except pa.ArrowException as error:
        raise InputError(f"{wrong} that fit {field.type}") from error
    if not field.nullable and typed.null_count:
        row = int(np.flatnonzero(typed.is_null().to_numpy())[0]) + 1
        raise InputError(f"{what}: row {row}: no {field.name}; give one or drop the row")
    return typed
