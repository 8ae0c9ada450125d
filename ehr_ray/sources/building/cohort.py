"""A cohort being built: where it is staged, what it is made of, and how it becomes visible.

<parent>/.<name>.staging-<fingerprint>-3/parts/      one folder a unit (staging.py)
                                         cohort/     renamed to <parent>/<name> when complete
                                         subjects/   one table a shard (shards.py)
                                         ranges/     tables by ranges of subjects (ranges.py)
                                         codes/      what shards hold (statistics.py)
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import meds
import numpy as np
import pyarrow.compute as pc

from ehr_ray.errors import InputError
from ehr_ray.events.code_statistics import CodeFit
from ehr_ray.events.manifest import FOLDER, write_manifest
from ehr_ray.events.schema import ORIGIN_CODES, RECORD, REJECTED, SPLITS, SUBJECT_SPLITS
from ehr_ray.sources.building.changes import check_values, told, write_changes
from ehr_ray.sources.building.keyed import rows_by_key
from ehr_ray.sources.building.metadata import (
    TaskSummary,
    division_notes,
    fitted_codes,
    write_labels,
    write_names,
    write_vectors,
)
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
from ehr_ray.sources.building.shards import Shard, plan_shards
from ehr_ray.sources.building.staging import (
    MAPPED,
    NUM_KEYS,
    STAGED,
    Plan,
    side_table,
    stacked,
    totals,
)
from ehr_ray.sources.building.statistics import rows
from ehr_ray.sources.parsing.quarantine import masked
from ehr_ray.sources.source import CHANGES, Source, Unit
from ehr_ray.sources.splits import SplitPolicy
from ehr_ray.storage import files
from ehr_ray.storage.lock import exclusive_lock

log = logging.getLogger(__name__)

LAYOUT: Final = 4
"""Bump when the same input would give other bytes: staged work of older versions is not reused."""

STAGING: Final = 3
"""Bump when staged work is written in another form: that of older versions is not read."""

TASKS: Final = "tasks.json"
"""In `metadata`: what the positive class of each task is, where the source says."""


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest made.

    Args:
        cohort: the finished folder.
        subjects: number of subjects by split.
        events: rows of all shards.
        rows_read: rows seen in the input.
        rejected_rows: rows in `rejected.parquet`.
        rejected_files: files in it.
        labels: by task.
        labels_without_subject: labels dropped because no event came with them.
        changes: kind of change -> how much was read otherwise than it stood.
        notes: lines on how subjects were divided, where that was not as asked or as expected.
        reused: whether the cohort was already there.
        seconds: wall time.
    """

    cohort: Path
    subjects: dict[str, int]
    events: int
    rows_read: int
    rejected_rows: int
    rejected_files: int
    labels: dict[str, TaskSummary]
    labels_without_subject: int
    changes: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reused: bool = False
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return a few lines for the screen."""
        splits = ", ".join(f"{name} {count:,}" for name, count in self.subjects.items())
        done = "already there" if self.reused else f"in {self.seconds:.1f} s"
        lines = [
            f"{self.cohort}: {sum(self.subjects.values()):,} subjects ({splits}), "
            f"{self.events:,} events, {done}",
            f"rejected {self.rejected_rows:,} of {self.rows_read:,} rows and "
            f"{self.rejected_files:,} files (metadata/rejected.parquet)",
        ]
        lines += told(self.changes)
        lines += self.notes
        lines += [f"task {task}: {summary}" for task, summary in self.labels.items()]
        if self.labels_without_subject:
            lines.append(f"{self.labels_without_subject:,} labels dropped: no events for them")
        return "\n".join(lines)


def fingerprint(
    source: Source,
    options: Any,
    policy: SplitPolicy,
    units: Iterable[Unit],
    origin: Sequence[str] = ORIGIN_CODES,
    treatment: tuple[str, ...] = (),
) -> tuple[str, int]:
    """Return (hash of everything that decides the bytes, bytes of input).

    `treatment` says what is done to values and to repeats of rows. Files count by name, size and
    time of change, not by place: an input may be moved. Databases count by their units' `state`.
    """
    digest = hashlib.sha256(
        json.dumps(
            [
                LAYOUT,
                source.name,
                dataclasses.asdict(options),
                dataclasses.astuple(policy),
                origin,
                treatment,
            ],
            default=str,
        ).encode()
    )
    size = 0
    shared = {(unit.root, name) for unit in units if not unit.state for name in unit.uses}
    given = (*vars(options).values(), policy.file)
    shared |= {("", str(v)) for v in given if isinstance(v, Path)}
    for root, name in sorted(shared):
        _stat(digest, root, name)
    sizes: dict[tuple[str, str], int] = {}  # a file in several units counts once
    for unit in units:
        digest.update(repr((unit.kind, unit.split, unit.start, unit.stop)).encode())
        digest.update(unit.state.encode())
        size += unit.size
        for name in () if unit.state else unit.files:
            sizes[unit.root, name] = _stat(digest, unit.root, name)
    return digest.hexdigest()[:16], size + sum(sizes.values())


def _stat(digest: Any, root: str, name: str) -> int:
    path = os.path.join(root, name)
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; check the path") from None
    digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return status.st_size


def finished(output: Path, print_: str) -> IngestSummary | None:
    """Return the summary of a cohort made by the same ingest, None where nothing is there.

    Anything else at `output` is an `InputError`.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return None
    try:
        record = json.loads((output / RECORD).read_text())
        same, summary = record["fingerprint"] == print_, dict(record["summary"])
        labels = {task: TaskSummary(**value) for task, value in summary.pop("labels").items()}
        summary["notes"] = tuple(summary.get("notes", ()))
        done = IngestSummary(cohort=output, labels=labels, reused=True, **summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        same, record = False, None
    if not same:
        what = "another input or other options" if record else "something else"
        raise InputError(f"--output {output}: holds {what}; remove it or choose another folder")
    return done


@contextlib.contextmanager
def staging(output: Path, print_: str) -> Iterator[Path]:
    """Hold the staging folder of an ingest; keep it if the job dies, drop it on bad input.

    Staging of other fingerprints for the same output is removed. Raises `InputError` while
    another process is ingesting into the same output.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {output}: {error.strerror}; choose another folder") from None
    folder = output.with_name(f".{output.name}.staging-{print_}-{STAGING}")
    discard_staging(output, keep=folder)
    folder.mkdir(exist_ok=True)
    with _lock(folder, output):
        _remove_unfinished(folder)
        try:
            yield folder
        except InputError:
            _remove(folder)
            raise
        shutil.rmtree(folder)


def _remove_unfinished(folder: Path) -> None:
    """Remove what tasks that were killed had begun to write: their hidden files and folders."""
    for path in [*folder.rglob(".*")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    """Remove a folder that other tasks of the failed job may still write to for a moment."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    shutil.rmtree(folder)


def discard_staging(output: Path, keep: Path | None = None) -> None:
    """Remove what unfinished ingests into `output` left, but not `keep`."""
    for stale in sorted(output.parent.glob(f".{output.name}.staging-*")):
        if stale != keep:
            with _lock(stale, output):
                shutil.rmtree(stale)


def _lock(folder: Path, output: Path) -> contextlib.AbstractContextManager[None]:
    busy = InputError(f"--output {output}: another ingest is writing it; wait")
    return exclusive_lock(folder / "lock", busy, patience=0)


def check_parts(
    plan: Plan, num_parts: int, max_rejected: float, checked: Sequence[Checked]
) -> list[Shard]:
    """Return the shards to write; raise `InputError` if the parts cannot make a cohort.

    `checked` is what was found of the ids of all ranges.

    That is: more than `max_rejected` of rows or of files refused, values that are mostly no
    numbers, a subject in two files, or no event at all.
    """
    parts = [plan.part(i) for i in range(num_parts)]
    _check_rejects(parts, max_rejected)
    map_note(plan, parts)
    check_values(parts, totals(parts)["values"], max_rejected)
    check_subjects(checked)
    check_folders(checked)
    left_out = sum(each.undivided for each in checked)
    if left_out and not plan.policy.keep_source:
        raise InputError(
            f"--splits {plan.policy.file}: {left_out:,} subjects of the input have no split there; "
            "add them, or take them out of the input"
        )
    counts = np.zeros(NUM_KEYS, np.int64)
    for i in range(num_parts):
        counts += rows_by_key(plan.keyed(i), STAGED, NUM_KEYS)
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

    `fit` has the counts of all shards.
    """

    num_parts: int
    shards: list[Shard]
    ranges: list[Buckets]
    checked: list[Checked]
    settled: list[Settled]
    fit: CodeFit


def finish(plan: Plan, source: Source, work: Work, output: Path, print_: str) -> IngestSummary:
    """Write labels and metadata beside the shards and rename the whole to `output`."""
    cohort = plan.staging / "cohort"
    parts, shards = [plan.part(i) for i in range(work.num_parts)], work.shards
    metadata = cohort / "metadata"
    metadata.mkdir(exist_ok=True)
    check_splits(work.settled)
    splits = metadata / "subject_splits.parquet"
    files.write_parquet_pieces(merged(written(plan, work.ranges, "splits")), SUBJECT_SPLITS, splits)
    write_manifest(rows(plan, shards), cohort / FOLDER)
    codes = fitted_codes(plan, source, work.fit, shards, parts)
    files.write_parquet(codes, metadata / "codes.parquet")
    if unused := plan.limits.unused(codes["code"].to_pylist()):
        log.warning("--ranges and --units: no event has the code %s", ", ".join(unused))
    rejected = (table for part in parts if (table := side_table(part, "rejected")) is not None)
    files.write_parquet_pieces(rejected, REJECTED, metadata / "rejected.parquet")
    write_names(plan, work.ranges, metadata)
    write_vectors(parts, cohort)
    changes = write_changes(
        plan, shards, parts, sum(each.harmless for each in work.checked), metadata
    )
    labels, orphans = write_labels(plan, work.ranges, work.settled, cohort)
    if orphans and not any(task.labels for task in labels.values()):
        raise InputError(
            f"none of the {orphans:,} labels is of a subject with events; the ids of the labels "
            "must be those of the events"
        )
    sums = totals(parts)
    counts = sum((each.subjects for each in work.settled), Counter())
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
        notes=(
            *division_notes(plan, sum(each.undivided for each in work.checked), work.settled),
            *filter(None, [map_note(plan, parts)]),
        ),
    )
    _write_records(plan, summary, shards, metadata, print_)
    if source.positive:
        positive = source.positive(plan.options)
        (metadata / TASKS).write_text(json.dumps(positive, indent=1) + "\n")
    _remove_unfinished(cohort)
    files.sync_tree(cohort)
    with contextlib.suppress(FileNotFoundError):
        # An empty folder may have been made for us; rename replaces it on POSIX, but not a link.
        output.rmdir()
    os.rename(cohort, output)
    files.sync(output.parent)
    return summary


def _write_records(
    plan: Plan, summary: IngestSummary, shards: list[Shard], metadata: Path, print_: str
) -> None:
    dataset = {
        "dataset_name": plan.source,
        "etl_name": "ehr_ray",
        "meds_version": meds.__version__,
    }
    (metadata / "dataset.json").write_text(json.dumps(dataset, indent=1) + "\n")
    counts = dataclasses.asdict(summary)
    for key in ("cohort", "reused", "seconds"):
        del counts[key]
    names = {split: [s.path(plan).name for s in shards if s.split == split] for split in SPLITS}
    record = {"fingerprint": print_, "seed": plan.policy.seed, "summary": counts, "shards": names}
    (metadata / RECORD.name).write_text(json.dumps(record, indent=1) + "\n")
