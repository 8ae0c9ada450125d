"""Who a patient is at a prediction time: age band, sex, unit. Read from events, by their codes.

The codes need not be known to any model: a cohort is read for them alone.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

Fact = tuple[int, str, float]
"""Time (the smallest int64 for a static event), code and value (NaN without one)."""
MICROSECONDS_PER_YEAR: Final = 365.25 * 24 * 3600 * 1e6
_STATIC: Final = -(2**63)
_Entry = tuple[int, str, float | None]
"""Its place among all entries, the name of its group, the value that is wanted if one is."""
_BATCH_ROWS: Final = 1 << 19


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """One way to divide patients: by bands of a number, or by named groups of events."""

    __pydantic_config__ = {"extra": "forbid"}

    edges: tuple[float, ...] = ()
    """Ascending cuts of the number: [45, 65] makes under 45, 45 to under 65, 65 and over."""
    codes: tuple[str, ...] = ()
    """Codes whose value is the number; the last one known counts."""
    births: tuple[str, ...] = ()
    """Codes whose time is the birth: where there is no value, the number is the age in years."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a group to the events that put a patient into it: `CODE`, `CODE=value` or, with
    `*` for any text, `ICU_ADMISSION//*(MICU)*`. The last event known counts."""

    def __post_init__(self) -> None:
        if bool(self.edges) == bool(self.groups):
            raise ValueError("give either edges (with codes or births) or groups")
        if self.edges and not (self.codes or self.births):
            raise ValueError("edges need codes or births to take the number from")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges must ascend")

    @property
    def names(self) -> list[str]:
        """The groups in their order."""
        if self.groups:
            return list(self.groups)
        first, last = self.edges[0], self.edges[-1]
        middle = (f"{a:g} to under {b:g}" for a, b in pairwise(self.edges))
        return [f"under {first:g}", *middle, f"{last:g} and over"]


def default_subgroups() -> dict[str, Subgroup]:
    """Return age, sex and ICU type by the codes of PhysioNet 2012 and of MIMIC-IV in MEDS."""
    return {
        "age": Subgroup(edges=(45, 65, 80), codes=("Age", "AGE"), births=("MEDS_BIRTH",)),
        "sex": Subgroup(
            groups={
                "female": ("Gender=0", "GENDER//F", "GENDER//FEMALE", "SEX//F"),
                "male": ("Gender=1", "GENDER//M", "GENDER//MALE", "SEX//M"),
            }
        ),
        "ICU type": Subgroup(
            groups={
                "coronary": ("ICUType=1", "ICU_ADMISSION//*(CCU)*"),
                "cardiac surgery": ("ICUType=2", "ICU_ADMISSION//*(CVICU)*"),
                "medical": ("ICUType=3", "ICU_ADMISSION//*(MICU)*"),
                "surgical": ("ICUType=4", "ICU_ADMISSION//*(SICU)*", "ICU_ADMISSION//*(TSICU)*"),
                "medical and surgical": ("ICU_ADMISSION//*(MICU/SICU)*",),
                "neurological": ("ICU_ADMISSION//Neuro*",),
            }
        ),
    }


PLACES: Final = {
    "hospital": "HOSPITAL",
    "hospital beds": "HOSPITAL_BEDS",
    "hospital region": "HOSPITAL_REGION",
    "teaching hospital": "HOSPITAL_TEACHING",
    "care site": "CARE_SITE",
}
"""Name of a subgroup to what its codes begin with, before `//`."""
MAX_PLACES: Final = 50
"""So many hospitals are told one by one, those with the most rows."""


def place_subgroups(codes: Sequence[str]) -> dict[str, Subgroup]:
    """Return subgroups by hospital, of the codes that a cohort has."""
    found = {}
    for name, prefix in PLACES.items():
        groups: dict[str, tuple[str, ...]] = {
            code.removeprefix(f"{prefix}//"): (code,)
            for code in sorted(codes)
            if code.startswith(f"{prefix}//")
        }
        if len(groups) > 1:
            found[name] = Subgroup(groups=groups)
    return found


class SubgroupReader:
    """Answers which group a subject of a shard was in at a time.

    Memory holds the events of the shard that tell: a few for each subject.
    """

    def __init__(self, shard: Path, subgroups: Mapping[str, Subgroup]) -> None:
        self._subgroups = subgroups
        entries = [entry for subgroup in subgroups.values() for entry in _entries(subgroup)]
        wanted = re.compile("|".join(f"(?:{_regex(_split(entry)[0])})" for entry in entries))
        self._facts = _read(shard, wanted) if entries else {}
        self._groups = {name: _Groups(subgroup) for name, subgroup in subgroups.items()}

    def group_of(self, name: str, subject_id: int, time: int) -> str | None:
        """Return a subject's group by what is known at `time` (microseconds since 1970)."""
        known = [fact for fact in self._facts.get(subject_id, ()) if fact[0] <= time]
        subgroup = self._subgroups[name]
        if subgroup.groups:
            return self._groups[name].last(known)
        number = _number(subgroup, known, time)
        if number is None:
            return None
        return subgroup.names[bisect_right(subgroup.edges, number)]


class _Groups:
    """Finds the group of an event, also of thousands of hospitals: codes that are whole by name."""

    def __init__(self, subgroup: Subgroup) -> None:
        self._whole: dict[str, list[_Entry]] = {}
        self._patterns: list[tuple[re.Pattern[str], _Entry]] = []
        entries = ((name, entry) for name, group in subgroup.groups.items() for entry in group)
        for place, (name, entry) in enumerate(entries):
            code, wanted = _split(entry)
            if "*" in code:
                self._patterns.append((re.compile(_regex(code)), (place, name, wanted)))
            else:
                self._whole.setdefault(code, []).append((place, name, wanted))

    def last(self, known: Sequence[Fact]) -> str | None:
        """Return the group of the last event that has one; of several of an event the first."""
        for _, code, value in reversed(known):
            found = [*self._whole.get(code, ())]
            found += [entry for pattern, entry in self._patterns if pattern.fullmatch(code)]
            fits = [(place, name) for place, name, wanted in found if wanted in (None, value)]
            if fits:
                return min(fits)[1]
        return None


def _number(subgroup: Subgroup, known: Sequence[Fact], time: int) -> float | None:
    for at, code, value in reversed(known):
        if value == value and any(re.fullmatch(_regex(c), code) for c in subgroup.codes):
            return value
        born = at != _STATIC and any(re.fullmatch(_regex(c), code) for c in subgroup.births)
        if born:
            return (time - at) / MICROSECONDS_PER_YEAR
    return None


def _entries(subgroup: Subgroup) -> list[str]:
    return [*subgroup.codes, *subgroup.births, *(e for g in subgroup.groups.values() for e in g)]


def _split(entry: str) -> tuple[str, float | None]:
    """Return the code and the value of `CODE=value`; a code may hold an equals sign itself."""
    code, equals, text = entry.rpartition("=")
    try:
        return (code, float(text)) if equals else (entry, None)
    except ValueError:
        return entry, None


def _regex(code: str) -> str:
    return ".*".join(re.escape(part) for part in code.split("*"))


def _read(shard: Path, wanted: re.Pattern[str]) -> dict[int, list[Fact]]:
    # Here: a config check, which imports this module for its records, does without.
    import numpy as np
    import pyarrow as pa

    from ehr_ray.events.vocabulary import as_float32
    from ehr_ray.storage import files, in_place

    facts: dict[int, list[Fact]] = {}
    remedy = "ingest the cohort again"
    with files.reads(shard, remedy), in_place.parquet(shard, remedy) as file:
        there = set(file.schema_arrow.names)
        columns = [n for n in ("subject_id", "time", "code", "numeric_value") if n in there]
        for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
            encoded = batch["code"].dictionary_encode()
            names = encoded.dictionary.to_pylist()
            telling = np.array([wanted.fullmatch(name) is not None for name in names], bool)
            rows = np.flatnonzero(telling[encoded.indices.to_numpy()])
            found = pa.Table.from_batches([batch]).take(pa.array(rows, pa.int64()))
            time = found["time"].cast(pa.timestamp("us")).cast(pa.int64()).fill_null(_STATIC)
            value = (
                as_float32(found["numeric_value"]).tolist()
                if "numeric_value" in there
                else [np.nan] * len(found)
            )
            events = zip(time.to_pylist(), found["code"].to_pylist(), value, strict=True)
            for subject, event in zip(found["subject_id"].to_pylist(), events, strict=True):
                facts.setdefault(subject, []).append(event)
    return facts
