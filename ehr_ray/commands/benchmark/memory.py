"""`benchmark --only memory`: whether `expand` takes more memory where there are more patients."""

import resource
from pathlib import Path
from typing import Final

from ehr_ray.commands.benchmark.lvcf import WINDOW
from ehr_ray.commands.benchmark.timing import Numbers, in_process
from ehr_ray.commands.expand import ShardExpander
from ehr_ray.commands.ingest import ingest
from ehr_ray.events.patients import cohort_shards
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.runtime.data.dataset import codes_table

PATIENTS: Final = (300, 3000)
"""Of the two cohorts."""


def memory(cohort: Path, place: Path) -> Numbers:  # noqa: ARG001
    """Peak memory of `expand` on a synthetic cohort and on one ten times larger."""
    peaks = []
    for patients in PATIENTS:
        folder = place / f"memory-{patients}"
        ingest("synthetic", None, folder, options={"patients": patients}, splits="all:train")
        # A peak is that of a process so far: each has one of its own.
        peaks.append(in_process(_expand_peak, folder, place / f"expanded-{patients}"))
    few, many = peaks
    told = {f"MiB, {n} patients": peak for n, peak in zip(PATIENTS, peaks, strict=True)}
    return {**told, "ratio": many / few}


def _expand_peak(cohort: Path, target: Path) -> float:
    """Return the peak resident memory of this process after expanding the cohort, in MiB."""
    expander = ShardExpander(Vocabulary.from_table(codes_table(cohort)), WINDOW, ())
    for index, shard in enumerate(cohort_shards(cohort, "train")):
        expander({"shard": str(shard), "target": str(target / f"{index}.parquet")})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
