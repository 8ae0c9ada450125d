"""How many of another cohort's events a model knows: what it does not know it cannot read."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ehr_ray.errors import InputError
from ehr_ray.evaluation.coverage import Coverage, coverage_of
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.runtime.data.tasks import Say, run_jobs
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import canonical


def measure_coverage(
    shards: Sequence[Path], vocabulary: Vocabulary, *, on_ray: bool, say: Say
) -> Coverage:
    """Count the events of shards by code, one task a shard; only counts of codes travel."""
    places = [canonical(path) for path in shards]
    counted = run_jobs(_count, places, on_ray=on_ray, say=say, verb="counted codes of shards")
    total: Counter[str] = Counter()
    for one in counted:
        total.update(dict(zip(one["code"], one["count"], strict=True)))
    return coverage_of(total, vocabulary)


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
