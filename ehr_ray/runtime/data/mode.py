"""Whether rows are kept or streamed, by the bytes they take and the room there is."""

import shutil
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

from ehr_ray.events.patients import Patient
from ehr_ray.events.row_batches import to_bytes
from ehr_ray.experiment import Experiment
from ehr_ray.runtime.data.rows import RowMaker
from ehr_ray.storage import files, in_place, sync
from ehr_ray.storage.listing import stamp
from ehr_ray.storage.paths import local

SAMPLED: Final = 256
"""Patients whose rows are made to know how much all of them take."""
FILLED: Final = 0.8
"""Share of the free room that rows may take."""


def choose(
    experiment: Experiment, folder: Path, missing: Sequence[Mapping[str, Any]], maker: RowMaker
) -> tuple[Literal["cache", "stream"], str | None]:
    """Return the mode of an experiment, and what was weighed where `auto` chose it, in a line.

    Args:
        experiment: whose `data.mode` counts; `auto` keeps what fits on the disk.
        folder: where rows would be kept.
        missing: the shards whose rows are not there yet, as jobs.
        maker: makes rows.
    """
    if experiment.data.mode != "auto":
        return experiment.data.mode, None
    if not missing:
        return "cache", None
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    needed = estimated(missing[0], maker) * sum(_bytes(job) for job in missing)
    fits = needed <= FILLED * free
    line = (
        f"data.mode=auto: rows take about {_size(needed)}, {_size(free)} are free in {place}: "
        + ("kept there" if fits else "streamed, each epoch anew")
    )
    return ("cache" if fits else "stream"), line


def estimated(job: Mapping[str, Any], maker: RowMaker) -> float:
    """Return the bytes of rows that a byte of events makes, by the first patients of a shard."""
    job = {**job, "shard": str(sync.in_store(job["shard"]))}
    size = read = 0
    for patient, cuts in islice(maker.everybody(job), SAMPLED):
        if cuts != []:
            size += len(to_bytes([*maker.rows(patient, cuts)]))
        read += len(patient.time if isinstance(patient, Patient) else patient.tokens.code)
    with files.reads(Path(job["shard"]), "restore it"):
        total = sum(in_place.footer(path).num_rows for path in _paths(job))
    return size / max(1.0, _bytes(job) * min(1.0, read / max(1, total)))


def _paths(job: Mapping[str, Any]) -> list[Path]:
    shard = local(job["shard"])
    return [shard / name for name in job["files"]] or [shard]


def _bytes(job: Mapping[str, Any]) -> int:
    return sum(stamp(path)[0] for path in _paths(job))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
