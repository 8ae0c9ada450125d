"""Raw data to a cohort on disk, in this process or as Ray Data tasks."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from ehr_ray.errors import InputError
from ehr_ray.runtime.data.tasks import run_jobs
from ehr_ray.runtime.session import session
from ehr_ray.runtime.tracking import flatten
from ehr_ray.runtime.verb_tracking import Destination, tracked_verb
from ehr_ray.sources.building.asked import Asked, treatment, units_of
from ehr_ray.sources.building.cohort import Work, check_parts, finish
from ehr_ray.sources.building.groups import divide_groups
from ehr_ray.sources.building.jobs import (
    CheckRange,
    DividePart,
    FindQuantiles,
    JoinGroup,
    ReadUnit,
    SampleShard,
    SettleRange,
    UnpackUnit,
    WriteShard,
)
from ehr_ray.sources.building.place import alone, made_before, place_of
from ehr_ray.sources.building.ranges import plan_ranges, tasks_of
from ehr_ray.sources.building.resume import (
    IngestSummary,
    discard_staging,
    fingerprint,
    staging,
)
from ehr_ray.sources.building.sharing import (
    address_of,
    begin_parts,
    bring,
    bring_parts,
    of_any_machine,
    publish,
    share,
    share_splits,
)
from ehr_ray.sources.building.staging import SPLITS_TABLE, Plan
from ehr_ray.sources.building.statistics import (
    FOUND,
    JOINED,
    REPEATS,
    groups_of,
    join_counts,
    train_shards,
)
from ehr_ray.sources.building.unpacking import UNPACKED, cut_units
from ehr_ray.sources.parsing.databases import table_path
from ehr_ray.sources.source import Unit, get_source, make_options
from ehr_ray.sources.splits import buckets_for
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import (
    canonical,
    is_outlined,
    uri_of,
)

SMALL_BYTES: Final = 200_000_000
"""Smaller inputs are read in this process unless CPUs are asked for: starting Ray takes seconds."""
METADATA: Final = ("dataset.json", "codes.parquet", "changes.parquet", "ingest.json")
"""Files of a cohort's metadata that name no subject: what MLflow gets of it."""


def ingest(
    source: str,
    input: str | Path | None,
    output: str | Path,
    *,
    splits: str | None = None,
    origin: str | None = None,
    seed: int = 0,
    max_rejected: float = 0.01,
    options: Mapping[str, object] | None = None,
    ranges: str | None = None,
    conversions: str | None = None,
    repeats: str = "keep",
    code_map: str | None = None,
    split_by: str | None = None,
    unlisted: str = "refuse",
    cpus: int | None = None,
    tracking: Destination | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> IngestSummary:
    """Turn raw data into a cohort at `output`, which appears whole or not at all.

    A job that was killed continues where it stopped when called again, with the same bytes as
    one that was not. A cohort made by the same call before is left as it is.

    Args:
        source: a name in `SOURCES`.
        input: file, folder, URI or address of a database; None for a source that makes its own
            data.
        output: folder or URI of the cohort.
        splits: `0.8,0.1,0.1`, `all:held_out`, or a CSV or Parquet table of subject_id and split;
            None keeps the source's own splits and hashes the others 0.8,0.1,0.1.
        origin: codes, by comma, whose first event is a subject's minute 0; None: the source's
            own, else the usual names of an admission (`ORIGIN_CODES`).
        seed: of the hash that divides subjects.
        max_rejected: share of rows, and of files, that may be bad.
        options: the source's own, by field name or flag, typed or as text.
        ranges: plausible ranges of values: a shipped table's name, a CSV file, or `none`; None
            is the source's own.
        conversions: of units, likewise.
        repeats: `keep` or `drop` the exact repeats of a row.
        code_map: a shipped map's name or a CSV file: codes are renamed, values scaled.
        split_by: a static code; everybody who shares a value of it comes into one split.
        unlisted: `refuse` an input with subjects that the table of `splits` leaves out, or `drop`
            these.
        cpus: 1 stays in this process, more starts Ray with that many; None decides by size.
        tracking: where an MLflow run is left of a cohort that was made.
        progress: called with one line whenever a piece of work is done.

    Raises:
        InputError: bad arguments, missing or corrupt input, or too many bad rows; another ingest
            is writing to `output`.
        RunError: a full disk, missing rights or a lost worker.
    """
    started = time.monotonic()
    kind = get_source(source)
    chosen = make_options(kind, options or {})
    asked = Asked(
        splits,
        seed,
        origin,
        ranges,
        conversions,
        repeats,
        code_map,
        split_by,
        unlisted,
        max_rejected,
    )
    plan = asked.plan(kind, chosen)
    place, output = place_of(output, kind, input)
    given, units = units_of(kind, input, chosen)
    if splits is None and split_by is None and isinstance(given, Path):
        plan = replace(plan, policy=replace(plan.policy, file=kind.split_table(given)))
    print_, size = fingerprint(
        kind, chosen, plan.policy, units, plan.origin, treatment=treatment(plan)
    )
    done = made_before(place, output, print_)
    if done is not None:
        discard_staging(output)
        progress(f"{output} is already there, made from the same input: nothing to do")
        return done
    on_ray = _worth_ray(units, size) if cpus is None else cpus > 1
    read = [of_any_machine(unit) for unit in units]
    named = canonical(given) if isinstance(given, Path) else given
    told = {"source": source, "input": named, "output": output, **asdict(asked)}
    told |= {f"options.{key}": value for key, value in asdict(chosen).items()}
    # Entered in this order: who waits for the lease of a store, or is refused the staging folder,
    # has started no Ray; and Ray has ended before the folder its tasks write to is removed.
    with (
        tracked_verb(tracking, "ingest", output.name, told) as record,
        alone(place, output, progress) as lease,
        files.writes(f"--output {output}"),
        staging(output, print_) as folder,
        session(address_of(place, read), num_cpus=cpus, without="--cpus 1")
        if on_ray
        else contextlib.nullcontext(),
    ):
        plan = replace(plan, staging=folder, store=uri_of(folder), buckets=buckets_for(size))
        run = partial(run_jobs, on_ray=on_ray, say=progress)
        relative = kind.relative_time(chosen)
        read = _unpacked(plan, read, run, place, cut=on_ray)
        work = _build(plan, units, read, run, progress, place, max_rejected, relative=relative)
        if isinstance(given, Path) and is_outlined(given):
            sync.outline(given)  # nodes may have copied another object than the one listed before
            now, _ = fingerprint(
                kind, chosen, plan.policy, units, plan.origin, treatment=treatment(plan)
            )
            if now != print_:
                raise InputError(
                    f"--input {named}: changed while it was read; run the same command again"
                )
        summary = finish(plan, kind, work, output, print_)
        if lease is not None:
            lease.check()  # a machine that took it over meanwhile publishes its own
        publish(plan, work.num_parts, [shard.path(plan) for shard in work.shards], output)
        summary = replace(summary, seconds=time.monotonic() - started)
        counts = flatten(asdict(summary))
        record.metrics |= {k: float(v) for k, v in counts if type(v) in (int, float)}
        record.artifacts.append((output / "metadata", METADATA))
    return summary


def _unpacked(
    plan: Plan, read: Sequence[Unit], run: Callable[..., list[Any]], place: str, *, cut: bool
) -> list[Unit]:
    """Return the units, large compressed files of them in pieces that are unpacked, if `cut`."""
    packed = [(number, unit) for number, unit in enumerate(read) if unit.packed is not None]
    if packed:
        quiet = {} if cut else {"say": lambda _: None}
        run(UnpackUnit(plan, place, cut), packed, verb="unpacked", label=_unit_name, **quiet)
        bring(plan, UNPACKED)
    return cut_units(plan, read)


def _build(
    plan: Plan,
    units: Sequence[Unit],
    read: Sequence[Unit],
    run: Callable[..., list[Any]],
    say: Callable[[str], None],
    place: str,
    max_rejected: float,
    *,
    relative: bool,
) -> Work:
    """Read units, divide subjects, write shards and fit codes, in the staging folder of a plan.

    `read` are the units as the machines that read them know them, in pieces where they were
    unpacked; `run` is `run_jobs` told where.
    """
    number = len(read)
    share_splits(plan)
    begin_parts(plan, "parts", number)
    run(ReadUnit(plan, place), [*enumerate(read)], verb="read", label=_unit_name)
    bring_parts(plan, "parts", number, place)
    if plan.split_by is not None:
        divide_groups(plan, number)
        share(plan, SPLITS_TABLE)
        begin_parts(plan, "divided", number)
        divide = DividePart(plan, place)
        run(divide, [*range(number)], verb="divided", label=lambda part: f"part {part}")
        bring_parts(plan, "divided", number, place)
    buckets = plan_ranges(plan, number)
    checked = run(CheckRange(plan, place, number), buckets, verb="checked subjects")
    shards = check_parts(plan, number, max_rejected, checked)
    write = WriteShard(plan, place, number, relative)
    run(write, shards, verb="wrote", label=lambda shard: f"shard {shard}")
    tasks = tasks_of([plan.part(i) for i in range(number)])
    settle = SettleRange(plan, place, number, shards, tasks)
    settled = run(settle, buckets, verb="settled subjects")
    say("fitting codes on train")
    group = JoinGroup(plan, place)
    run(group, [*enumerate(groups_of(shards))], verb="joined counts", label=lambda job: f"{job[0]}")
    bring(plan, JOINED, "manifest")
    fit = join_counts(plan, shards)
    share(plan, JOINED)
    train = train_shards(shards)
    sample = SampleShard(plan, place)
    run(sample, train, verb="sampled", label=lambda shard: f"shard {shard}")
    find = FindQuantiles(plan, place, train)
    run(find, [*enumerate(fit.ranges())], verb="found quantiles", label=lambda job: f"{job[1]}")
    bring(plan, FOUND, "ranges", REPEATS)
    return Work(units[0], number, shards, buckets, checked, settled, fit)


def _unit_name(job: tuple[int, Unit]) -> str:
    number, unit = job
    return table_path(unit.root, unit.files[0]) if unit.files else f"unit {number}"


def _worth_ray(units: Sequence[Unit], size: int) -> bool:
    several = len(units) > 1 or any(unit.packed is not None for unit in units)
    return several and size >= SMALL_BYTES and (os.cpu_count() or 1) > 1
