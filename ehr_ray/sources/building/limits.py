"""Plausible ranges and units of values, by code, applied to every event that is staged.

A value outside its range is taken as not measured: its event is left out, and counted by code. A
value in a unit for which there is a conversion becomes one of the other unit, whose name its code
then ends in. Nothing is applied by a name that happens to agree: a source names its own tables, and
the user any other.
"""

import csv
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.events.code_map import csv_rows, number_in
from ehr_ray.sources.source import CHANGES, count_codes

NONE: Final = "none"
SHIPPED: Final = Path(__file__).parents[1] / "limits"
"""`<name>.csv` are ranges, `<name>-units.csv` conversions."""

OUTSIDE: Final = "out of range"
CONVERTED: Final = "unit converted"
OTHER_UNIT: Final = "range in another unit"
RANGE_COLUMNS: Final = ("code", "low", "high", "unit")
UNIT_COLUMNS: Final = ("code", "unit", "to", "factor", "offset")
_NO_UNIT: Final = ("", "unk")
Row = Mapping[str, str]
K = TypeVar("K")
V = TypeVar("V")


class Range(NamedTuple):
    """The closed interval of plausible values, in `unit`."""

    low: float
    high: float
    unit: str


class Conversion(NamedTuple):
    """`value * factor + offset` is the value in the unit `to`."""

    to: str
    factor: float
    offset: float


class Treatment(NamedTuple):
    """What is done to the events of a code: its new name, its value and what is plausible then."""

    code: str
    converted: bool = False
    factor: float = 1.0
    offset: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    other_unit: bool = False


@dataclass(frozen=True)
class Limits:
    """Ranges and conversions of units.

    Args:
        ranges: by code.
        conversions: by (code, unit).
        own: codes that the user's own tables name.
        digest: of the tables they come from.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    conversions: Mapping[tuple[str, str], Conversion] = field(default_factory=dict)
    own: frozenset[str] = frozenset()
    digest: str = ""

    def apply(self, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return (events that are left, `CHANGES` rows)."""
        if not (self.ranges or self.conversions) or not len(events):
            return events, CHANGES.empty_table()
        codes = events["code"].combine_chunks().dictionary_encode()
        treatments = [self.treatment(code) for code in codes.dictionary.to_pylist()]
        names, *columns = zip(*treatments, strict=True)
        at = codes.indices.to_numpy()
        named = np.array(names, object)[at]
        converted, factor, offset, low, high, other = (np.array(c)[at] for c in columns)
        values = events["numeric_value"].to_numpy()
        scaled = (values.astype(np.float64) * factor + offset).astype(np.float32)
        values = np.where(converted, scaled, values)
        there = ~np.isnan(values)
        # In float32, as the values are: 0.2 is not below 0.2.
        outside = (values < low.astype(np.float32)) | (values > high.astype(np.float32))
        kinds = {OUTSIDE: outside, CONVERTED: converted & there, OTHER_UNIT: other & there}
        changes = pa.concat_tables(
            [count_codes(pa.array(named[mask], pa.string()), kind) for kind, mask in kinds.items()]
        )
        if converted.any():
            value = pa.array(values, pa.float32(), mask=~there)
            for name, column in (("code", pa.array(named, pa.string())), ("numeric_value", value)):
                place = events.schema.get_field_index(name)
                events = events.set_column(place, events.field(name), column)
        return (events.filter(pa.array(~outside)) if outside.any() else events), changes

    def treatment(self, code: str) -> Treatment:
        """Return what is done to a code."""
        base, unit = self._parts(code)
        result = Treatment(code)
        conversion = self.conversions.get((base, _plain(unit)))
        if conversion is not None:
            unit = conversion.to
            named = f"{base}//{unit}" if unit else base
            result = Treatment(named, True, conversion.factor, conversion.offset)
        known = self.ranges.get(base)
        if known is None:
            return result
        units = (_plain(unit), _plain(known.unit))
        if units[0] == units[1] or units[0] in _NO_UNIT or units[1] in _NO_UNIT:
            return result._replace(low=known.low, high=known.high)
        return result._replace(other_unit=True)

    def _parts(self, code: str) -> tuple[str, str]:
        """Return (code as the tables have it, unit): whole, or without the `//unit` at its end."""
        base, _, unit = code.rpartition("//")
        return (base, unit) if base in self._codes and code not in self._codes else (code, "")

    @cached_property
    def _codes(self) -> set[str]:
        return {*self.ranges, *(code for code, _ in self.conversions)}

    def unused(self, codes: Iterable[str]) -> list[str]:
        """Return the codes of the user's own tables that are none of these."""
        return sorted(self.own - {self._parts(code)[0] for code in codes})


def load_limits(ranges: str, units: str) -> Limits:
    """Read both tables: the name of one that is shipped, `none`, or a CSV file.

    Raises `InputError` naming the option, the file and the line of what is wrong.
    """
    found_ranges, range_bytes = _table("--ranges", ranges, "", RANGE_COLUMNS, _range)
    found_units, unit_bytes = _table("--units", units, "-units", UNIT_COLUMNS, _conversion)
    digest = hashlib.sha256(range_bytes + b"\0" + unit_bytes).hexdigest()
    own = set() if ranges in shipped() else set(found_ranges)
    if units not in shipped("-units"):
        own |= {code for code, _ in found_units}
    return Limits(found_ranges, found_units, frozenset(own), digest)


def shipped(suffix: str = "") -> list[str]:
    """Return the names of the tables that are shipped."""
    stems = [path.stem for path in SHIPPED.glob("*.csv")]
    if suffix:
        return sorted(stem.removesuffix(suffix) for stem in stems if stem.endswith(suffix))
    return sorted(stem for stem in stems if not stem.endswith("-units"))


def _table(
    flag: str, name: str, suffix: str, columns: Sequence[str], parse: Callable[[Row], tuple[K, V]]
) -> tuple[dict[K, V], bytes]:
    if name == NONE:
        return {}, b""
    path = SHIPPED / f"{name}{suffix}.csv" if name in shipped(suffix) else Path(name)
    try:
        content = path.read_bytes()
        rows = csv_rows(content, columns)
    except (OSError, UnicodeError, csv.Error):
        there = ", ".join((NONE, *shipped(suffix)))
        raise InputError(f"{flag} {name}: no readable CSV file, nor one of {there}") from None
    except ValueError as error:
        raise InputError(f"{flag} {name}: {error}") from None
    found: dict[K, V] = {}
    for line, row in enumerate(rows, start=2):
        try:
            key, value = parse({column: row[column].strip() for column in columns})
        except ValueError as error:
            raise InputError(f"{flag} {name}: line {line}: {error}") from None
        if key in found:
            raise InputError(f"{flag} {name}: line {line} is about {row['code']} again; keep one")
        found[key] = value
    if not found:
        raise InputError(f"{flag} {name}: no row; it needs the columns {', '.join(columns)}")
    return found, content


def _range(row: Mapping[str, str]) -> tuple[str, Range]:
    low, high = number_in(row, "low", -math.inf), number_in(row, "high", math.inf)
    if not low <= high:
        raise ValueError(f"low {row['low']} is not below high {row['high']}")
    return row["code"], Range(low, high, row["unit"])


def _conversion(row: Mapping[str, str]) -> tuple[tuple[str, str], Conversion]:
    factor, offset = number_in(row, "factor"), number_in(row, "offset", 0.0)
    if not math.isfinite(factor) or not math.isfinite(offset) or factor == 0:
        raise ValueError(f"factor {row['factor']} and offset {row['offset']} convert nothing")
    return (row["code"], _plain(row["unit"])), Conversion(row["to"], factor, offset)


def _plain(unit: str) -> str:
    """Return a unit without what only its writing adds: `mm Hg` is `mmHg`, `g/dl` is `g/dL`."""
    return unit.replace(" ", "").replace("µ", "u").replace("μ", "u").casefold()
