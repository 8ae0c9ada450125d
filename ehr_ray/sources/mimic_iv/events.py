"""Typed rows of a table -> events."""

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.sources.mimic_iv.rows import Block, odd
from ehr_ray.sources.mimic_iv.table_units import Registry, day_end
from ehr_ray.sources.mimic_iv.tables import DAY_END, DISCHARGE, KNOWN, Event, Table
from ehr_ray.sources.parsing.cells import Mask, Times, events_table

AFTER: Final = np.timedelta64(1, "s")
"""How long after discharge a stay's billing codes stand."""


def block_events(block: Block, table: Table, registry: Registry) -> pa.Table:
    """Return the `EVENTS` of a block, first event of the table first; may refuse rows of it."""
    times = {event.time for event in table.events}
    if DISCHARGE in times:
        _at_discharge(block, registry)
    if DAY_END in times:
        _at_day_end(block, registry)
    if KNOWN in times:
        block.columns[KNOWN] = np.fmax(block.columns["charttime"], block.columns["storetime"])
    return pa.concat_tables([_rows(event, block) for event in table.events])


def _at_discharge(block: Block, registry: Registry) -> None:
    """Give rows the end of their admission; refuse those without one."""
    subject, hadm = block.columns["subject_id"], block.columns["hadm_id"]
    block.columns[DISCHARGE], known = _ends(block, registry)
    block.refuse(
        ~known,
        lambda i: f"hadm_id {hadm[i]} of subject_id {subject[i]} is not in hosp/admissions",
    )


def _at_day_end(block: Block, registry: Registry) -> None:
    """Give rows the end of their date, or the time after their admission if it ended on it."""
    date = block.columns["chartdate"]
    ends, _ = _ends(block, registry)
    on_the_day = ends.astype("datetime64[D]") == date.astype("datetime64[D]")
    block.columns[DAY_END] = np.where(on_the_day, ends + AFTER, day_end(date))


def _ends(block: Block, registry: Registry) -> tuple[Times, Mask]:
    """Return (end of each row's admission, NaT where not known; whether it is)."""
    row, known = registry.admissions.find(block.columns["subject_id"], block.columns["hadm_id"])
    ends = np.full(len(row), np.datetime64("NaT"), "datetime64[us]")
    ends[known] = registry.admissions.end[row[known]]
    return ends, known


def _rows(event: Event, block: Block) -> pa.Table:
    columns = block.columns
    times = columns[event.time]
    if event.billed:
        times = times + AFTER
    if event.not_before is not None:
        times = np.where(np.isnat(times), times, np.fmax(times, columns[event.not_before]))
    values = np.full(len(block), np.nan) if event.value is None else columns[event.value]
    rows = events_table(columns["subject_id"], times, _codes(event.code, block), values)
    there = ~np.isnat(times)
    if not there.all():
        rows = rows.filter(pa.array(there))
    if event.value is not None:
        block.rejects.odd_values(rows, columns[odd(event.value)][there])
    return rows


def _codes(template: str, block: Block) -> pa.Array:
    """Return the code of each row, its `{column}`s filled in."""
    parts: list[Any] = []
    for part in template.split("//"):
        named = part.startswith("{")
        values = block.columns[part[1:-1]] if named else pa.repeat(pa.scalar(part), len(block))
        parts.append(pa.array(values).cast(pa.string()))
    return pc.binary_join_element_wise(*parts, "//")
