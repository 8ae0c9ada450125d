"""How many of another cohort's events a model knows: what it does not know it cannot read."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ehr_ray.errors import InputError
from ehr_ray.evaluation.table import Table
from ehr_ray.events.schema import is_origin
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.runtime.data.tasks import Say, run_jobs
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import canonical

MIN_KNOWN: Final = 0.5
"""Share of events below which a cohort is refused unless told otherwise."""
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


def measure_coverage(
    shards: Sequence[Path], vocabulary: Vocabulary, *, on_ray: bool, say: Say
) -> Coverage:
    """Count the events of shards by code, one task a shard; only counts of codes travel."""
    places = [canonical(path) for path in shards]
    counted = run_jobs(_count, places, on_ray=on_ray, say=say, verb="counted codes of shards")
    total: Counter[str] = Counter()
    for one in counted:
        total.update(dict(zip(one["code"], one["count"], strict=True)))
    tokens = {code: n for code, n in total.items() if not is_origin(code, vocabulary.origin)}
    known = set(vocabulary.codes)
    unknown = Counter({code: n for code, n in tokens.items() if code not in known})
    return Coverage(sum(tokens.values()), dict(unknown.most_common()))


def require_coverage(coverage: Coverage, least: float, cohort: str | Path) -> None:
    """Raise InputError where the model knows less than a share `least` of a cohort's events."""
    if coverage.known < least:
        raise InputError(
            f"{cohort}: {coverage.line()}; ingest it with the codes of the run's cohort, or give "
            f"--min-known-events {math.floor(coverage.known * 100) / 100:.2f} to go on all the same"
        )


def _count(shard: str) -> dict[str, list[str] | list[int]]:
    """Return the codes of a shard and how many events each has."""
    counts = files.read_parquet(sync.fetch(shard), ["code"])["code"].value_counts().to_pylist()
    return {
        "code": [row["values"] for row in counts],
        "count": [row["counts"] for row in counts],
    }
