"""Whether rows are kept or streamed, by the bytes they take and the room there is."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from ehr_ray.events.blocks import to_bytes
from ehr_ray.events.patients import Patient
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.rows import RowMaker
from ehr_ray.runtime.data.tasks import Say
from ehr_ray.storage import files, sync

SAMPLED: Final = 256
"""Patients whose rows are made to know how much all of them take."""
FILLED: Final = 0.8
"""Share of the free room that rows may take."""


def choose(
    experiment: Experiment,
    folder: Path,
    missing: Sequence[Mapping[str, Any]],
    all_files: Sequence[Path],
    maker: RowMaker,
    say: Say,
) -> Literal["cache", "stream"]:
    """Return the mode of an experiment; `auto` caches what fits on the disk, and says so.

    Args:
        experiment: whose `data.mode` counts.
        folder: where rows would be kept.
        missing: the shards whose rows are not there yet, as jobs.
        all_files: what all shards, those too that are done, are read from.
        maker: makes rows.
        say: gets a line of what was weighed.
    """
    if experiment.data.mode != "auto":
        return experiment.data.mode
    if not missing:
        return "cache"
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    needed = estimated(missing[0], maker) * sum(path.stat().st_size for path in all_files)
    fits = needed <= FILLED * free
    say(
        f"data.mode=auto: rows take about {_size(needed)}, {_size(free)} are free in {place}: "
        + ("kept there" if fits else "streamed, each epoch anew")
    )
    return "cache" if fits else "stream"


def estimated(job: Mapping[str, Any], maker: RowMaker) -> float:
    """Return the bytes of rows that a byte of events makes, by the first patients of a shard."""
    shard = sync.fetch(job["shard"])
    size = read = total = 0
    for patient, cuts in islice(maker.patients({**job, "shard": str(shard)}), SAMPLED):
        size += len(to_bytes([*maker.rows(patient, cuts)]))
        read += len(patient.time if isinstance(patient, Patient) else patient.tokens.code)
    paths = [shard / name for name in job["files"]] or [shard]
    with files.reads(shard, "restore it"):
        for path in paths:
            total += sync.footer(path).num_rows
    bytes_read = sum(path.stat().st_size for path in paths) * min(1.0, read / max(1, total))
    return size / max(1.0, bytes_read)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
