"""How many of some events a model knows, by their codes."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
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

    @property
    def known(self) -> float:
        """Share of the events that the model knows, 1 where there are none."""
        return 1 - sum(self.unknown.values()) / self.events if self.events else 1.0

    def line(self) -> str:
        """Return what a person should read of it."""
        text = f"the model knows {self.known:.1%} of {self.events:,} events"
        if not self.unknown:
            return text
        names = [f"{code} ({count:,})" for code, count in list(self.unknown.items())[:NAMED]]
        more = ", ..." if len(self.unknown) > NAMED else ""
        return f"{text}; {len(self.unknown):,} codes are new to it: {', '.join(names)}{more}"

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
    return Coverage(sum(tokens.values()), dict(unknown.most_common()))


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


def require_coverage(coverage: Coverage, least: float, cohort: str | Path) -> None:
    """Raise InputError where the model knows less than a share `least` of a cohort's events."""
    if coverage.known < least:
        raise InputError(
            f"{cohort}: {coverage.line()}; bring its codes to those of the run's cohort by "
            f"--code-map ({', '.join(shipped())} or a CSV file), or give --min-known-events "
            f"{math.floor(coverage.known * 100) / 100:.2f} to go on all the same"
        )
