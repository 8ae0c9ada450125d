"""What of an input was read otherwise than it stood: told on the screen, by code in a table.

`metadata/changes.parquet` counts by code and kind of change. `metadata/inequalities.parquet` has
the events whose value is a bound, with the text that says which: `>100`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.sources.building.limits import CONVERTED, OTHER_UNIT, OUTSIDE
from ehr_ray.sources.building.odd_times import FAR, NO_YEAR, STAND_IN
from ehr_ray.sources.building.shards import DROPPED, KEPT
from ehr_ray.sources.building.staging import MAPPED, stacked
from ehr_ray.sources.parsing.quantities import DECIMAL_COMMA, FIRST_SIGN, GROUPED, UNREADABLE
from ehr_ray.sources.parsing.quarantine import (
    KINDS,
    NAIVE,
    OF_OPEN_VISIT,
    OPEN_VISIT,
    UNREAD,
    UNRECORDED,
    ZONED,
)
from ehr_ray.sources.source import CHANGES, INEQUALITIES
from ehr_ray.storage import files

SPELLINGS: Final = "subject id in several spellings"
TABLE: Final = "changes.parquet"

PHRASES: Final = {
    OPEN_VISIT: ("visits without an end", "no discharge, and no label that needs it"),
    OF_OPEN_VISIT: ("diagnoses of visits without an end", "left out: nobody knows when known"),
    UNRECORDED: ("rows that say a value was not recorded (-1, blank)", "left out"),
    OUTSIDE: ("values out of their plausible range", "left out as not measured (--ranges)"),
    OTHER_UNIT: ("values in another unit than their range, without a conversion", "kept"),
    MAPPED: ("events of codes in the map", "renamed (--code-map)"),
    CONVERTED: ("values in a known other unit", "converted (--units)"),
    KINDS[FIRST_SIGN]: ("values such as >100", "number kept, sign in inequalities.parquet"),
    KINDS[GROUPED]: ("values such as 1,234", "read as 1234"),
    KINDS[UNREADABLE]: ("values that are no number", "event kept without one"),
    KINDS[DECIMAL_COMMA]: ("values such as 7,4", "event kept without one; see --decimal"),
    KEPT: ("exact repeats of a row", "kept (--repeats drop leaves them out)"),
    DROPPED: ("exact repeats of a row", "left out (--repeats keep keeps them)"),
    ZONED: ("times with a zone", "turned to UTC"),
    NO_YEAR: ("times before the year 1000 or after 4000", "kept; blank is unknown"),
    FAR: ("times before 1800 or after 2300", "kept; blank is unknown"),
    STAND_IN: ("times 1900-01-01 or 1899-12-30, not of a birth", "kept; blank is unknown"),
    UNREAD: ("files of other endings in the input's folder", "not read"),
    SPELLINGS: ("subject ids in several spellings (blanks, .0)", "taken as one each"),
}
"""Kind of change -> what was found, and what became of it; told in this order."""


def write_changes(
    repeats: Iterable[pa.Table], parts: list[Path], several: int, folder: Path
) -> dict[str, int]:
    """Write both tables to `folder`; return the sums by kind of change.

    `repeats` are `CHANGES` about exact repeats; `several` ids were written in several ways.
    """
    spelt = pa.table([[None], [SPELLINGS], [several]], schema=CHANGES)
    every = pa.concat_tables([stacked(parts, "changes", CHANGES), *repeats, spelt])
    # Of times the place stands for a code, for `check_zones`.
    every = every.filter(
        pc.and_(pc.greater(every["count"], 0), pc.not_equal(every["change"], NAIVE))
    )
    code = pc.if_else(pc.equal(every["change"], ZONED), pa.scalar(None, pa.string()), every["code"])
    every = every.set_column(0, CHANGES.field("code"), code)
    table = summed(every, ["code", "change"])
    sums = dict(zip(*summed(every, ["change"]).to_pydict().values(), strict=True))
    order = [("change", "ascending"), ("count", "descending"), ("code", "ascending")]
    files.write_parquet(table.sort_by(order).cast(CHANGES), folder / TABLE)
    bounds = stacked(parts, "inequalities", INEQUALITIES)
    if len(bounds):
        files.write_parquet(bounds, folder / "inequalities.parquet")
    return {kind: sums[kind] for kind in PHRASES if kind in sums}


def told(changes: dict[str, int]) -> list[str]:
    """Return one line for each kind of change."""
    lines = [
        f"{PHRASES[kind][0]}: {count:,}, {PHRASES[kind][1]}" for kind, count in changes.items()
    ]
    return [*lines, f"all by code in metadata/{TABLE}"] if lines else []


def check_zones(parts: list[Path]) -> None:
    """Raise `InputError` where some times of the input say their zone and others do not.

    Both kinds as they stand would be hours apart, and a prediction could read what came after it.
    """
    changes = stacked(parts, "changes", CHANGES)
    kinds = changes["change"]
    aware, bare = (changes.filter(pc.equal(kinds, kind))["code"] for kind in (ZONED, NAIVE))
    if len(aware) and len(bare):
        one, other = aware[0].as_py(), bare[0].as_py()
        beside = "and others without" if one == other else f"but none in {other}"
        raise InputError(
            f"{one}: times with a zone, {beside}; give all times of events and labels with a zone, "
            "or none (the local clock)"
        )


def check_values(parts: list[Path], values: int, max_rejected: float) -> None:
    """Raise `InputError` where values were lost in such numbers that the fault is in the reading.

    That is: decimal commas in more than `max_rejected` of them, or no number in most of them.
    """
    changes = summed(stacked(parts, "changes", CHANGES), ["change"])
    sums = dict(zip(*changes.to_pydict().values(), strict=True))
    commas, odd = sums.get(KINDS[DECIMAL_COMMA], 0), sums.get(KINDS[UNREADABLE], 0)
    every = values + commas + odd
    if commas > max_rejected * every:
        raise InputError(
            f"{commas} of {every} values have a decimal comma, as 7,4: say --decimal , "
            "(--source table), or raise --max-rejected"
        )
    if odd > max(max_rejected, 0.5) * every:
        raise InputError(
            f"{odd} of {every} values are no numbers: is it the right column of values? If they "
            "are words, make them part of the code, or raise --max-rejected"
        )


def summed(table: pa.Table, keys: list[str]) -> pa.Table:
    """Return the sums of `count` by other columns of `CHANGES`."""
    sums = table.group_by(keys, use_threads=False).aggregate([("count", "sum")])
    return sums.select([*keys, "count_sum"]).rename_columns([*keys, "count"])
