"""How many of some events a model knows, by their codes, and how much of what it reads is there.

Events are told apart by their codes alone. Where a data set records much that a model has never
read (drugs, diagnoses), it knows a small share of the events, and yet may find all that it was
trained on: so a cohort is refused where both shares are small.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ehr_ray.errors import InputError
from ehr_ray.evaluation.table import Table
from ehr_ray.events.code_map import shipped
from ehr_ray.events.manifest import Manifest
from ehr_ray.events.schema import is_origin
from ehr_ray.events.vocabulary import Vocabulary

MIN_KNOWN: Final = 0.5
"""Share of events below which they are refused unless told otherwise."""
STRAY: Final = 0.05
"""A code that has no more than this share of the events it would have if these were as train's is
not taken to be there: a row gone astray, or one hospital of many, makes no cohort that is known."""
SHOWN: Final = 20
"""Unknown codes in the table of the report."""
NAMED: Final = 3
"""Unknown codes on the screen."""


@dataclass(frozen=True)
class Coverage:
    """Events of some shards by whether a model knows their code; admissions count as neither."""

    events: int
    unknown: Mapping[str, int]
    """Code to its events, the most frequent first."""
    absent: Mapping[str, float] = field(default_factory=dict)
    """Codes of the model that no event has, to their share of its train events, the largest
    first."""
    trained: float = 0.0
    """Share of the events the model was trained on whose codes these events have, and not only
    astray (`STRAY`)."""

    @property
    def known(self) -> float:
        """Share of the events that the model knows, 1 where there are none."""
        return 1 - sum(self.unknown.values()) / self.events if self.events else 1.0

    def line(self) -> str:
        """Return what a person should read of it."""
        text = f"the model knows {self.known:.1%} of {self.events:,} events"
        if not self.unknown:
            return text
        names = [f"{code} ({count:,})" for code, count in self.unknown.items()]
        return f"{text}; {len(self.unknown):,} codes are new to it: {_first(names)}"

    def absent_line(self) -> str:
        """Return what a person should read of the codes that are not there; "" without any."""
        if not self.absent:
            return ""
        names = [f"{code} ({share:.1%})" for code, share in self.absent.items()]
        return (
            f"these events have codes of {self.trained:.1%} of those it was trained on; "
            f"{len(self.absent):,} of its codes are not there: {_first(names)}"
        )

    def enough(self, least: float) -> bool:
        """Whether the model knows a share `least` of the events, or finds it of what it reads."""
        return max(self.known, self.trained) >= least

    def table(self) -> Table:
        """Return the most frequent unknown codes, with their share of all events."""
        rows = tuple(
            (code, f"{count:,}", count / self.events)
            for code, count in list(self.unknown.items())[:SHOWN]
        )
        return Table(
            ("Code", "Events", "Share of all"), rows, f"{self.line()[0].upper()}{self.line()[1:]}."
        )


def coverage_of(counts: Mapping[str, int], vocabulary: Vocabulary) -> Coverage:
    """Return the coverage of events given as their number by code."""
    tokens = {code: n for code, n in counts.items() if not is_origin(code, vocabulary.origin)}
    known = set(vocabulary.codes)
    unknown = Counter({code: n for code, n in tokens.items() if code not in known})
    weight = vocabulary.count / max(1, vocabulary.count.sum())
    absent = {
        code: float(share)
        for code, share in zip(vocabulary.codes, weight, strict=True)
        if share and not tokens.get(code)
    }
    largest = sorted(absent.items(), key=lambda item: -item[1])
    total = sum(tokens.values())
    trained = sum(
        float(w)
        for code, w in zip(vocabulary.codes, weight, strict=True)
        if tokens.get(code, 0) > STRAY * w * total
    )
    return Coverage(sum(tokens.values()), dict(unknown.most_common()), dict(largest), trained)


def measure_coverage(
    manifest: Manifest, vocabulary: Vocabulary, split: str | None = None
) -> Coverage:
    """Return how many of a cohort's events a model knows; of all splits, or of one."""
    counts = manifest.by_code(["count"], split)
    return coverage_of({code: count for code, (count,) in counts.items()}, vocabulary)


def check_min_known(share: float, option: str = "--min-known-events ") -> None:
    """Raise InputError for what is no share of events."""
    if not 0 <= share <= 1:
        raise InputError(f"{option}{share:g}: not a share between 0 and 1")


def require_coverage(
    coverage: Coverage, least: float, cohort: str | Path, *, mapped: bool = False
) -> None:
    """Raise InputError where a model knows too little of a cohort, and too little of it is there.

    Both shares are below `least` then. `mapped`: a code map was applied, so the remedy is another.
    """
    if coverage.enough(least):
        return
    remedy = (
        "ingest the tables that have them, or add rows to the map of --code-map"
        if mapped
        else "bring its codes to those of the run's cohort by --code-map "
        f"({', '.join(shipped())} or a CSV file)"
    )
    absent = coverage.absent_line()
    share = math.floor(max(coverage.known, coverage.trained) * 100) / 100
    raise InputError(
        f"{cohort}: {coverage.line()}{absent and '; '}{absent}; {remedy}, or give "
        f"--min-known-events {share:.2f} to go on all the same"
    )


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
