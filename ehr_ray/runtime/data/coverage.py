"""How many of another cohort's events a model knows: what it does not know it cannot read."""

import math
from pathlib import Path

from ehr_ray.errors import InputError
from ehr_ray.evaluation.coverage import Coverage, coverage_of
from ehr_ray.events.manifest import Manifest
from ehr_ray.events.vocabulary import Vocabulary


def measure_coverage(
    manifest: Manifest, vocabulary: Vocabulary, split: str | None = None
) -> Coverage:
    """Return how many of a cohort's events a model knows; of all splits, or of one."""
    counts = manifest.by_code(["count"], split)
    return coverage_of({code: count for code, (count,) in counts.items()}, vocabulary)


def require_coverage(coverage: Coverage, least: float, cohort: str | Path) -> None:
    """Raise InputError where the model knows less than a share `least` of a cohort's events."""
    if coverage.known < least:
        raise InputError(
            f"{cohort}: {coverage.line()}; ingest it with the codes of the run's cohort, or give "
            f"--min-known-events {math.floor(coverage.known * 100) / 100:.2f} to go on all the same"
        )
