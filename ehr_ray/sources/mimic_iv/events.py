"""Typed rows of a table -> events."""

import numpy as np
import pyarrow as pa

from ehr_ray.sources.mimic_iv.table_units import Registry, day_end
from ehr_ray.sources.mimic_iv.tables import ADMISSIONS, DAY_END, DISCHARGE, KNOWN
from ehr_ray.sources.parsing.blocks import Block
from ehr_ray.sources.parsing.cells import Mask, Times
from ehr_ray.sources.parsing.event_rows import AFTER, event_rows
from ehr_ray.sources.parsing.quarantine import OF_OPEN_VISIT, OPEN_VISIT
from ehr_ray.sources.parsing.tables import Table


def block_events(block: Block, table: Table, registry: Registry) -> pa.Table:
    """Return the `EVENTS` of a block, first event of the table first; may refuse rows of it."""
    times = {event.time for event in table.events}
    if DISCHARGE in times:
        _at_discharge(block, registry)
        open_ = np.count_nonzero(np.isnat(block.columns[DISCHARGE]))
        block.rejects.change(OPEN_VISIT if table is ADMISSIONS else OF_OPEN_VISIT, int(open_))
    if DAY_END in times:
        _at_day_end(block, registry)
    if KNOWN in times:
        block.columns[KNOWN] = np.fmax(block.columns["charttime"], block.columns["storetime"])
    subjects = block.columns[table.key]
    return pa.concat_tables([event_rows(event, block, subjects) for event in table.events])


def _at_discharge(block: Block, registry: Registry) -> None:
    """Give rows the end of their admission, NaT where not known; refuse those without one."""
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
    """Return (end of each row's admission, NaT where not known; whether it is there)."""
    row, known = registry.admissions.find(block.columns["subject_id"], block.columns["hadm_id"])
    ends = np.full(len(row), np.datetime64("NaT"), "datetime64[us]")
    told = known.copy()
    told[known] = registry.admissions.ended[row[known]]
    ends[told] = registry.admissions.end[row[told]]
    return ends, known
