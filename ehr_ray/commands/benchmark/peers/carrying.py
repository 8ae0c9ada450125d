"""Last value carried forward, here and as a grouped forward fill or windows do it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ehr_ray.commands.benchmark.peers.timing import Figures, in_turn, library
from ehr_ray.errors import RunError
from ehr_ray.events.carry import carry_forward
from ehr_ray.events.patients import Patient, cohort_shards, read_patients
from ehr_ray.runtime.data.dataset import vocabulary_of

WINDOW: Final = 2880.0
PATIENTS: Final = 200
COLUMNS: Final = ("patient", "minute", "code", "value", "age")
SQL: Final = f"""
with grid as (
    select sets.patient, sets.minute, codes.code
    from (
        select patient, minute from events union select patient, 0 from events where minute < 0
    ) sets
    join (select distinct patient, code from events) codes using (patient)
), filled as (
    select grid.patient, grid.minute, grid.code, e.minute is not null as live,
        last_value(e.minute ignore nulls) over w as last_minute,
        last_value(case when e.minute is null then null else e.row end ignore nulls) over w as row
    from grid left join events e using (patient, minute, code)
    window w as (partition by grid.patient, grid.code order by grid.minute)
)
select f.patient, f.minute, f.code, e.value, f.minute - f.last_minute as age
from filled f join events e on e.row = f.row
where f.minute >= 0
    and (f.live or e.static or (e.value is not null and f.minute - f.last_minute <= {WINDOW}))
order by 1, 2, 3
"""
"""Of one observation a patient, minute and code; `row` tells one from another.

What was observed before minute 0 is carried into a set there; sets before it are left out.
"""


def carrying(cohort: Path) -> Figures:
    """Return tokens per CPU second of LVCF here, in polars and in DuckDB; RunError if they differ.

    The others' threads count: it is CPU time of the whole process.
    """
    vocabulary = vocabulary_of(cohort, 1)
    shard = cohort_shards(cohort, "train")[0]
    patients = list(read_patients(shard, vocabulary))[:PATIENTS]
    events = observations(patients)
    wanted = carried(patients)
    ways: dict[str, Callable[[], object]] = {"here": partial(carried, patients)}
    figures: Figures = {}
    for name, way in (("polars", in_polars), ("duckdb", in_duckdb)):
        module = library(name)
        if isinstance(module, str):
            figures[f"LVCF in {name}, million tokens per CPU second"] = module
            continue
        check_equal(name, way(module, events), wanted)
        ways[name] = partial(way, module, events)
    rates = {name: wanted.num_rows / seconds for name, seconds in in_turn(ways).items()}
    here = rates.pop("here")
    figures = {"LVCF here, million tokens per CPU second": here / 1e6, **figures}
    for name, rate in rates.items():
        figures[f"LVCF in {name}, million tokens per CPU second"] = rate / 1e6
        figures[f"LVCF, here over {name}"] = here / rate
    return figures


def observations(patients: Sequence[Patient]) -> pa.Table:
    """Return one observation a patient, whole minute and code, the last one that has a value.

    Columns `patient`, `minute`, `code`, `value` (null where there is none), `static`, `row`.
    """
    parts = []
    for number, p in enumerate(patients):
        minute, has_value = np.floor(p.minute), ~np.isnan(p.value)
        order = np.lexsort((has_value, p.code, minute))
        same = (np.diff(minute[order]) == 0) & (np.diff(p.code[order]) == 0)
        kept = order[np.append(~same, True)] if len(order) else order
        owner = np.full(len(kept), number)
        parts.append((owner, minute[kept], p.code[kept], p.value[kept], p.static[kept]))
    patient, minute, code, value, static = (np.concatenate(c) for c in zip(*parts, strict=True))
    return pa.table(
        {
            "patient": patient,
            "minute": minute,
            "code": code.astype(np.int64),
            "value": pa.array(value, from_pandas=True),
            "static": static,
            "row": np.arange(len(patient)),
        }
    )


def carried(patients: Sequence[Patient]) -> pa.Table:
    """Return the tokens of the product's own function, `COLUMNS`."""
    parts = []
    for number, p in enumerate(patients):
        t = carry_forward(p.minute, p.code, p.value, p.static, window=WINDOW)
        owner = np.full(len(t.code), number)
        parts.append((owner, t.minute[t.set_index], t.code, t.value, t.age))
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pa.table(dict(zip(COLUMNS, columns, strict=True)))


def in_polars(polars: ModuleType, events: pa.Table) -> pa.Table:
    """Return the same tokens by a grouped forward fill over a grid of sets and codes."""
    col: Callable[..., Any] = polars.col
    frame = polars.from_arrow(events).lazy()
    early = frame.filter(col("minute") < 0).select("patient", minute=polars.lit(0.0))
    sets = polars.concat([frame.select("patient", "minute"), early]).unique()
    codes = frame.select("patient", "code").unique()
    grid = sets.join(codes, on="patient").join(
        frame.with_columns(seen=col("minute")), on=["patient", "minute", "code"], how="left"
    )
    live = col("row").is_not_null()
    filled = grid.sort("patient", "code", "minute").with_columns(
        live=live,
        **{
            name: col(name).forward_fill().over("patient", "code")
            for name in ("seen", "row", "static")
        },
    )
    known = filled.drop("value").join(frame.select("row", "value"), on="row")
    age = col("minute") - col("seen")
    kept = col("live") | col("static") | (col("value").is_not_null() & (age <= WINDOW))
    tokens = (
        known.with_columns(age=age)
        .filter(kept & (col("minute") >= 0))
        .sort("patient", "minute", "code")
    )
    return tokens.select(COLUMNS).collect().to_arrow()


def in_duckdb(duckdb: ModuleType, events: pa.Table) -> pa.Table:
    """Return the same tokens by window functions over the same grid."""
    with duckdb.connect() as database:
        database.register("events", events)
        return database.sql(SQL).to_arrow_table()


def check_equal(name: str, theirs: pa.Table, ours: pa.Table) -> None:
    """Raise RunError with the first column in which two tables differ."""
    for column in COLUMNS:
        a, b = (t[column].to_numpy().astype(np.float64) for t in (theirs, ours))
        if len(a) != len(b) or not np.array_equal(a, b, equal_nan=True):
            raise RunError(
                f"--only peers: {name} carries other tokens than ehr_ray: {len(a):,} rows against "
                f"{len(b):,}, first seen in {column!r}"
            )
