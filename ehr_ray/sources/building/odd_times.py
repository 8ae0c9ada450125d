"""Times that no patient's record has: what stands for an unknown one, or is in another unit."""

from datetime import datetime
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.schema import is_birth
from ehr_ray.sources.source import CHANGES, count_codes

FAR: Final = "time before 1800 or after 2300"
NO_YEAR: Final = "time before the year 1000 or after 4000"
"""To which no shift of dates leads (those of MIMIC-II end in the 36th century)."""
STAND_IN: Final = "time 1900-01-01 or 1899-12-30, not of a birth"

_KIND: Final = pa.timestamp("us")
_FIRST: Final = pa.scalar(datetime(1800, 1, 1), _KIND)
_END: Final = pa.scalar(datetime(2300, 1, 1), _KIND)
_YEARS: Final = tuple(pa.scalar(datetime(year, 1, 1), _KIND) for year in (1000, 4000))
_STAND_INS: Final = pa.array([datetime(1900, 1, 1), datetime(1899, 12, 30)], _KIND)
"""Day 0 of databases and of spreadsheets."""


def odd_times(events: pa.Table) -> pa.Table:
    """Return `CHANGES` rows: events by code whose time is likely none; they are kept.

    Shifted dates are not among them (MIMIC's lie between 2100 and 2214).
    """
    times = events["time"]
    plain = pc.and_(pc.greater(times, _STAND_INS[0]), pc.less(times, _END))
    if pc.all(plain).as_py() is not False:
        return CHANGES.empty_table()
    none = pc.or_(pc.less(times, _YEARS[0]), pc.greater_equal(times, _YEARS[1]))
    far = pc.or_(pc.less(times, _FIRST), pc.greater_equal(times, _END))
    codes = events.filter(pc.is_in(times, _STAND_INS))["code"]
    births = pa.array([code for code in codes.unique().to_pylist() if is_birth(code)], pa.string())
    codes = codes.filter(pc.invert(pc.is_in(codes, births)))
    return pa.concat_tables(
        [
            count_codes(events.filter(none)["code"], NO_YEAR),
            count_codes(events.filter(pc.and_not(far, none))["code"], FAR),
            count_codes(codes, STAND_IN),
        ]
    )


def check_times(changes: pa.Table, events: int) -> None:
    """Raise `InputError` where most of the events are so far off that the fault is in the reading.

    `changes` are `CHANGES` rows of the whole input.
    """
    far = pc.sum(changes.filter(pc.equal(changes["change"], NO_YEAR))["count"]).as_py() or 0
    if far > events / 2:
        raise InputError(
            f"{far:,} of {events:,} events are before the year 1000 or after 4000: are the times "
            "in the unit that was said (seconds, not milliseconds)? Leave unknown times blank"
        )
