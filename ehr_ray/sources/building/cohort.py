"""A cohort being built: what its parts must be, what lies beside its shards, how it appears."""

import contextlib
import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.code_statistics import CodeFit
from ehr_ray.events.manifest import FOLDER
from ehr_ray.events.schema import RECORD, REJECTED, SPLITS, SUBJECT_SPLITS
from ehr_ray.sources.building.changes import check_values, check_zones, write_changes
from ehr_ray.sources.building.keyed import rows_by_key
from ehr_ray.sources.building.metadata import (
    division_notes,
    fitted_codes,
    write_labels,
    write_names,
    write_vectors,
)
from ehr_ray.sources.building.odd_times import check_times
from ehr_ray.sources.building.ranges import (
    Buckets,
    Checked,
    Settled,
    check_folders,
    check_splits,
    check_subjects,
    merged,
    written,
)
from ehr_ray.sources.building.resume import IngestSummary, remove_unfinished
from ehr_ray.sources.building.shards import Shard, plan_shards
from ehr_ray.sources.building.staging import (
    MAPPED,
    STAGED,
    Plan,
    side_table,
    stacked,
    totals,
)
from ehr_ray.sources.building.statistics import joined_repeats, write_manifest
from ehr_ray.sources.parsing.quarantine import masked
from ehr_ray.sources.source import CHANGES, Source, Unit
from ehr_ray.storage import files

log = logging.getLogger(__name__)

TASKS: Final = "tasks.json"
"""In `metadata`: what the positive class of each task is, where the source says."""


def check_parts(
    plan: Plan, num_parts: int, max_rejected: float, checked: Sequence[Checked]
) -> list[Shard]:
    """Return the shards to write; raise `InputError` if the parts cannot make a cohort.

    `checked` is what was found of the ids of all ranges.

    That is: more than `max_rejected` of rows or of files refused, times with and without a zone,
    values that are mostly no numbers, a subject in two files, or no event at all.
    """
    parts = [plan.part(i) for i in range(num_parts)]
    _check_rejects(parts, max_rejected)
    check_zones(parts)
    counts = np.zeros(plan.keys, np.int64)
    for i in range(num_parts):
        counts += rows_by_key(plan.keyed(i), STAGED, plan.keys)
    left_out = sum(each.undivided for each in checked)
    if left_out and plan.unlisted == "drop" and not np.any(counts):
        raise InputError(
            f"--splits {plan.policy.file}: of {left_out:,} subjects of the input none is in it; "
            "are ids written the same way in both?"
        )
    map_note(plan, parts)
    check_values(parts, totals(parts)["values"], max_rejected)
    check_times(stacked(parts, "changes", CHANGES), int(counts.sum()))
    check_subjects(checked)
    check_folders(checked)
    if left_out and not plan.policy.keep_source and plan.unlisted == "refuse":
        raise InputError(
            f"--splits {plan.policy.file}: {left_out:,} subjects of the input have no split there; "
            "add them, or leave them out by --unlisted drop"
        )
    if not np.any(counts):
        raise InputError(f"no event in the input: is it in the format of --source {plan.source}?")
    return plan_shards(counts)


def map_note(plan: Plan, parts: list[Path]) -> str | None:
    """Return a line on codes of the map that no event has; `InputError` if no event has any."""
    if plan.code_map is None:
        return None
    changes = stacked(parts, "changes", CHANGES)
    return plan.code_map.check(
        changes.filter(pc.equal(changes["change"], MAPPED))["code"].to_pylist()
    )


def _check_rejects(parts: list[Path], max_rejected: float) -> None:
    sums = totals(parts)
    bad_rows, rows = sums["rejected_rows"], sums["rows_read"]
    bad_files, num_files = sums["rejected_files"], sums["files_read"]
    if bad_rows <= max_rejected * rows and bad_files <= max_rejected * num_files:
        return
    tables = (side_table(part, "rejected") for part in parts)
    first = next(table for table in tables if table is not None).slice(0, 3).to_pylist()
    examples = "; ".join(
        f"{row['file']}:{row['line']}: {masked(row['reason'])}".replace(":None:", ":")
        for row in first
    )
    raise InputError(
        f"rejected {bad_rows} of {rows} rows and {bad_files} of {num_files} files, more than "
        f"{max_rejected:.3g} of them: {examples}; fix them or raise --max-rejected"
    )


@dataclass(frozen=True)
class Work:
    """What the jobs of an ingest did: the parts, shards and ranges there are, what was found.

    `unit` is any unit of the source; `fit` has the counts of all shards.
    """

    unit: Unit
    num_parts: int
    shards: list[Shard]
    ranges: list[Buckets]
    checked: list[Checked]
    settled: list[Settled]
    fit: CodeFit


def finish(plan: Plan, source: Source, work: Work, output: Path, print_: str) -> IngestSummary:
    """Write labels and metadata beside the shards; all of it appears at `output`."""
    cohort = plan.staging / "cohort"
    parts, shards = [plan.part(i) for i in range(work.num_parts)], work.shards
    metadata = cohort / "metadata"
    metadata.mkdir(parents=True, exist_ok=True)
    check_splits(work.settled)
    splits = metadata / "subject_splits.parquet"
    files.write_parquet_pieces(merged(written(plan, work.ranges, "splits")), SUBJECT_SPLITS, splits)
    write_manifest(plan, shards, cohort / FOLDER)
    codes = fitted_codes(plan, source, work.fit, parts, work.unit)
    files.write_parquet(codes, metadata / "codes.parquet")
    if unused := plan.limits.unused(codes["code"].to_pylist()):
        log.warning("--ranges and --units: no event has the code %s", ", ".join(unused))
    rejected = (table for part in parts if (table := side_table(part, "rejected")) is not None)
    files.write_parquet_pieces(rejected, REJECTED, metadata / "rejected.parquet")
    write_names(plan, work.ranges, metadata)
    write_vectors(parts, cohort)
    several = sum(each.harmless for each in work.checked)
    changes = write_changes(joined_repeats(plan, shards), parts, several, metadata)
    labels, orphans = write_labels(plan, work.ranges, work.settled, cohort)
    if orphans and not any(task.labels for task in labels.values()):
        raise InputError(
            f"none of the {orphans:,} labels is of a subject with events; the ids of the labels "
            "must be those of the events"
        )
    sums = totals(parts)
    counts = sum((each.subjects for each in work.settled), Counter())
    undivided = sum(each.undivided for each in work.checked)
    summary = IngestSummary(
        cohort=output,
        subjects={split: counts[split] for split in SPLITS},
        events=sum(each.events for each in work.settled),
        rows_read=sums["rows_read"],
        rejected_rows=sums["rejected_rows"],
        rejected_files=sums["rejected_files"],
        labels=labels,
        labels_without_subject=orphans,
        changes=changes,
        left_out=undivided if plan.unlisted == "drop" else 0,
        notes=(
            *division_notes(plan, undivided, work.settled),
            *filter(None, [map_note(plan, parts)]),
        ),
    )
    _write_records(plan, summary, shards, metadata, print_)
    if source.positive:
        positive = source.positive(plan.options)
        (metadata / TASKS).write_text(json.dumps(positive, indent=1) + "\n")
    remove_unfinished(cohort)
    files.sync_tree(cohort)
    _appear(cohort, output, whole=plan.store is None)
    return summary


def _appear(cohort: Path, output: Path, *, whole: bool) -> None:
    """Rename a cohort to `output`; what is not `whole`, the copy of a store's, folder by folder.

    Beside that copy others of the store may lie.
    """
    if whole:
        # An empty folder may have been made for us; rename replaces it on POSIX, but not a link.
        with contextlib.suppress(FileNotFoundError):
            output.rmdir()
        os.rename(cohort, output)
    else:
        output.mkdir(parents=True, exist_ok=True)
        for folder in cohort.iterdir():
            os.rename(folder, output / folder.name)
    files.sync(output.parent)


def _write_records(
    plan: Plan, summary: IngestSummary, shards: list[Shard], metadata: Path, print_: str
) -> None:
    dataset = {
        "dataset_name": plan.source,
        "etl_name": "ehr_ray",
        "meds_version": version("meds"),
    }
    (metadata / "dataset.json").write_text(json.dumps(dataset, indent=1) + "\n")
    counts = dataclasses.asdict(summary)
    for key in ("cohort", "reused", "seconds"):
        del counts[key]
    names = {split: [s.path(plan).name for s in shards if s.split == split] for split in SPLITS}
    record = {"fingerprint": print_, "seed": plan.policy.seed, "summary": counts, "shards": names}
    (metadata / RECORD.name).write_text(json.dumps(record, indent=1) + "\n")
