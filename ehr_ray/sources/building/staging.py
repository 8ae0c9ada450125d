"""First pass: the chunks of a unit, tagged with split and hash bucket, in one staging part.

A part is a folder that appears by one rename, so an interrupted ingest keeps what is finished:

    parts/<n>/events        by key = split * buckets + bucket (keyed.py)
              part.json     rows and files read and refused
              whole.json    in a store: the names of these files (sharing.py)
              {rejected,changes,inequalities,codes,groups,vectors}.parquet
              {names,subjects,folders,undivided}  by bucket (ranges.py)
              labels/<task>/<column of values>    by bucket
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehr_ray.errors import InputError, MissingError
from ehr_ray.events.code_map import CodeMap
from ehr_ray.events.schema import EVENTS, ORIGIN_CODES, REJECTED, SPLIT_NAMES, SPLITS
from ehr_ray.sources.building.keyed import KeyedWriter, removed
from ehr_ray.sources.building.limits import Limits
from ehr_ray.sources.building.odd_times import odd_times
from ehr_ray.sources.parsing.identifiers import NAMES
from ehr_ray.sources.parsing.labels import VALUE_TYPES
from ehr_ray.sources.parsing.split_table import (
    SplitTable,
    read_mapped,
    read_splits,
    write_mapped,
)
from ehr_ray.sources.source import LABEL_VALUES, Chunk, Unit, changes_of, get_source
from ehr_ray.sources.splits import (
    NUM_BUCKETS,
    SplitPolicy,
    assign_buckets,
    assign_splits,
)
from ehr_ray.storage import files, sync
from ehr_ray.storage.paths import join

NO_SPLIT: Final = 255
Repeats = Literal["keep", "drop"]
Unlisted = Literal["refuse", "drop"]

MAPPED: Final = "code mapped"

GROUPS: Final = pa.schema([pa.field("subject_id", pa.int64()), pa.field("group", pa.string())])
"""Who shares a value of the code that subjects are divided by."""

FILES: Final = pa.schema([pa.field("subject_id", pa.int64()), pa.field("file", pa.string())])
"""Which file a subject came from."""
FOLDERS: Final = pa.schema([pa.field("subject_id", pa.int64()), pa.field("split", pa.string())])
"""Which split a subject's folder is of."""
UNDIVIDED: Final = pa.schema([pa.field("subject_id", pa.int64())])
"""Subjects that no split was said of."""
BY_BUCKET: Final = {"names": NAMES, "subjects": FILES, "folders": FOLDERS, "undivided": UNDIVIDED}
LABELS: Final = "labels"

SPLITS_TABLE: Final = "splits.arrow"
"""In the staging folder: the split of each subject that `--splits` or `--split-by` divides."""

TOTALS: Final = "part.json"
"""The file of a part with what was read and refused."""

STAGED: Final = "events"
"""The table of a part, or of a divided one, with its events by key."""


@dataclass(frozen=True)
class Plan:
    """What every task of one ingest needs to know.

    Args:
        source: name of the source.
        options: its options record.
        policy: how subjects are divided.
        staging: folder of the unfinished cohort; where it lies in a store, what this process has
            of it.
        origin: codes of the time origin.
        limits: plausible ranges and units of values.
        repeats: whether exact repeats of a row are kept, or only the first of them.
        code_map: what becomes of codes, after ranges and units.
        split_by: a static code; everybody who shares a value of it comes into one split.
        store: URI of that folder, where it lies in a store.
        buckets: into how many subjects are hashed (`buckets_for`).
        unlisted: what becomes of subjects that the table of `--splits` leaves out.
    """

    source: str
    options: Any
    policy: SplitPolicy
    staging: Path
    origin: tuple[str, ...] = ORIGIN_CODES
    limits: Limits = field(default_factory=Limits)
    repeats: Repeats = "keep"
    code_map: CodeMap | None = None
    split_by: str | None = None
    store: str | None = None
    buckets: int = NUM_BUCKETS
    unlisted: Unlisted = "refuse"

    @property
    def keys(self) -> int:
        """How many keys of events there are: a bucket of a split each."""
        return len(SPLITS) * self.buckets

    def part(self, index: int) -> Path:
        """Return the folder of the part that unit `index` makes."""
        return self.staging / "parts" / f"{index:06d}"

    def keyed(self, index: int) -> Path:
        """Return the folder of the part's events by their final keys, and of their counts."""
        folder = "parts" if self.split_by is None else "divided"
        return self.staging / folder / f"{index:06d}"

    def read(self, folder: Path) -> str | Path:
        """Return where the tables of a part are read that another job may have left."""
        if self.store is None:
            return folder
        return join(self.store, *folder.relative_to(self.staging).parts)

    def writer(self, folder: Path, name: str, schema: pa.Schema, num_keys: int) -> KeyedWriter:
        """Return the writer of a table of a part: compressed where it goes to a store."""
        return KeyedWriter(folder, name, schema, num_keys, None if self.store is None else "zstd")

    def splits_table(self) -> Path:
        """Return the file `SPLITS_TABLE`; of one in a store, the copy that a machine has.

        Raises `RunError` where another ingest has removed it.
        """
        if self.store is None:
            return self.staging / SPLITS_TABLE
        try:
            return sync.fetch(join(self.store, SPLITS_TABLE))
        except MissingError:
            raise removed(self.store) from None


def scatter(plan: Plan, index: int, unit: Unit) -> None:
    """Read a unit and leave its part; a part that is already there is kept."""
    final = plan.part(index)
    if final.exists():
        return

    with files.new_folder(final, publish_as(final)) as part:
        _write_part(part, get_source(plan.source).read(unit, plan.options), plan)


def publish_as(final: Path) -> Callable[[Path], None]:
    """Return a function that renames a finished folder to `final`, unless it is there by then."""

    def publish(folder: Path) -> None:
        try:
            folder.rename(final)
        except OSError:
            # The same task, run twice by a retry, was faster elsewhere.
            if not final.exists():
                raise

    return publish


def _write_part(part: Path, chunks: Iterator[Chunk], plan: Plan) -> None:
    """Write what chunks hold; once a damaged file is refused, nothing of it but its refusal."""
    chunk: Chunk | None = None
    totals, tables = _new_totals()
    labels: dict[tuple[str, str], list[pa.Table]] = {}
    divided = None if plan.policy.file is None else splits_table(plan)
    with plan.writer(part, STAGED, EVENTS, plan.keys) as writer:
        for chunk in chunks:
            if chunk.lost_rows is not None:
                break
            _add(totals, chunk)  # with whom a table of splits leaves out, as in `changes`
            if divided is not None and plan.unlisted == "drop":
                chunk, dropped = only_listed(chunk, divided)
                if len(dropped):
                    tables.setdefault("undivided", []).append(pa.table({"subject_id": dropped}))
            events, changes = plan.limits.apply(chunk.events)
            if plan.code_map is not None:
                events, mapped = plan.code_map.apply(events)
                changes = pa.concat_tables([changes, changes_of(mapped, MAPPED)])
            changes = pa.concat_tables([changes, odd_times(events)])
            keys, undivided = event_keys(events, plan, divided)
            if plan.split_by is not None:
                tables.setdefault("groups", []).append(groups_of(events, plan.split_by))
            writer.write(events.select(EVENTS.names), keys)
            tables.setdefault("changes", []).append(changes)
            for name, table in _side_tables(chunk):
                tables.setdefault(name, []).append(table)
            for task, rows in _labels(chunk):
                labels.setdefault((task, rows.column_names[-1]), []).append(rows)
            if (
                plan.policy.keep_source
                and plan.policy.file is not None
                and "split" in chunk.events.schema.names
            ):
                folders = chunk.events.select(FOLDERS.names)
                folders = folders.group_by(FOLDERS.names).aggregate([])
                tables.setdefault("folders", []).append(folders)
            if len(undivided):
                tables.setdefault("undivided", []).append(pa.table({"subject_id": undivided}))
    if chunk is not None and chunk.lost_rows is not None:
        with plan.writer(part, STAGED, EVENTS, plan.keys):
            pass
        totals, tables = _new_totals()
        _add(totals, chunk)
        for name in ("rows_read", "rejected_rows"):
            totals[name] += chunk.lost_rows
        tables = {name: [table] for name, table in _side_tables(chunk)}
        labels = {}
    for name, pieces in tables.items():
        if name in BY_BUCKET:
            _write_by_bucket(plan, part, name, pa.concat_tables(pieces).cast(BY_BUCKET[name]))
        else:
            pq.write_table(pa.concat_tables(pieces), part / f"{name}.parquet", **files.CHECKED)
    for (task, column), pieces in labels.items():
        (part / LABELS / task).mkdir(parents=True, exist_ok=True)
        _write_by_bucket(plan, part / LABELS / task, column, pa.concat_tables(pieces))
    (part / TOTALS).write_text(json.dumps(totals))


def only_listed(chunk: Chunk, table: SplitTable) -> tuple[Chunk, npt.NDArray[np.int64]]:
    """Return (a chunk without the subjects that a table leaves out, those who had events)."""

    def listed(rows: pa.Table) -> pa.Table:
        return rows.filter(table.of(rows["subject_id"].to_numpy()).is_valid())

    ids = np.unique(chunk.events["subject_id"].to_numpy())
    dropped = ids[table.of(ids).is_null().to_numpy(zero_copy_only=False)]
    tables = {name: getattr(chunk, name) for name in ("subjects", "names", "inequalities")}
    kept = replace(
        chunk,
        events=listed(chunk.events),
        labels={task: listed(rows) for task, rows in chunk.labels.items()},
        **{name: listed(rows) for name, rows in tables.items() if rows is not None},
    )
    return kept, dropped


def _write_by_bucket(plan: Plan, folder: Path, name: str, rows: pa.Table) -> None:
    if name in BY_BUCKET and name != "subjects":
        rows = rows.group_by(rows.column_names, use_threads=False).aggregate([])
    with plan.writer(folder, name, rows.schema, plan.buckets) as writer:
        writer.write(rows, assign_buckets(rows["subject_id"].to_numpy(), plan.buckets))


def label_schema(column: str) -> pa.Schema:
    """Return what a chunk's labels are whose values are in `column`."""
    return pa.schema(
        [
            pa.field("subject_id", pa.int64()),
            pa.field("prediction_time", pa.timestamp("us")),
            pa.field("minute", pa.float64()),
            pa.field(column, VALUE_TYPES[column]),
        ]
    )


def _new_totals() -> tuple[dict[str, int], dict[str, list[pa.Table]]]:
    names = ("rows_read", "files_read", "rejected_rows", "rejected_files", "values")
    return dict.fromkeys(names, 0), {}


def _add(totals: dict[str, int], chunk: Chunk) -> None:
    totals["rows_read"] += chunk.rows_read
    totals["files_read"] += chunk.files_read
    whole = chunk.rejects["line"].null_count
    totals["rejected_files"] += whole
    totals["rejected_rows"] += len(chunk.rejects) - whole
    value = chunk.events["numeric_value"]
    totals["values"] += len(value) - value.null_count


def _side_tables(chunk: Chunk) -> Iterator[tuple[str, pa.Table]]:
    if len(chunk.rejects):
        yield "rejected", chunk.rejects.cast(REJECTED)
    for name, table in (
        ("subjects", chunk.subjects),
        ("names", chunk.names),
        ("changes", chunk.changes),
        ("inequalities", chunk.inequalities),
        ("codes", chunk.codes),
        ("vectors", chunk.vectors),
    ):
        if table is not None and len(table):
            yield name, table


def _labels(chunk: Chunk) -> Iterator[tuple[str, pa.Table]]:
    for task, table in chunk.labels.items():
        if not task or "/" in task or task.startswith("."):
            raise InputError(f"label task {task!r}: the name cannot be a file's; rename it")
        (column,) = (name for name in LABEL_VALUES if name in table.column_names)
        schema = label_schema(column)
        yield task, table.select(schema.names).cast(schema)


def groups_of(events: pa.Table, code: str) -> pa.Table:
    """Return `GROUPS` rows: the values that subjects have of a static code."""
    static = events.filter(pc.is_null(events["time"])).select(
        ["subject_id", "code", "numeric_value"]
    )
    named = pc.starts_with(static["code"], code + "//")
    static = static.filter(pc.or_(named, pc.equal(static["code"], code)))
    number = static["numeric_value"].cast(pa.string()).fill_null("")
    group = pc.binary_join_element_wise(static["code"].cast(pa.string()), number, "=")
    rows = pa.table([static["subject_id"], group], schema=GROUPS)
    return rows.group_by(GROUPS.names, use_threads=False).aggregate([])


def splits_table(plan: Plan) -> SplitTable:
    """Return the table of splits that the policy names, read once and mapped from then on.

    In a store the process of the verb leaves it before a part is read.
    """
    if plan.store is None:
        leave_splits(plan)
    return read_mapped(plan.splits_table())


def leave_splits(plan: Plan) -> None:
    """Write the table of splits that the policy names as all processes of a machine map it."""
    path = plan.staging / SPLITS_TABLE
    if not path.exists():
        write_mapped(read_splits(str(plan.policy.file)), path)
        read_splits.cache_clear()  # nobody reads it again


def event_keys(
    events: pa.Table, plan: Plan, table: SplitTable | None
) -> tuple[npt.NDArray[np.uint16] | npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return (the key of each row, the undivided).

    Those are the subjects that the source's own splits, or a table of splits, leave out.
    """
    ids = events["subject_id"].to_numpy()
    policy = plan.policy
    splits, undivided = assign_splits(ids, policy), ids[:0]
    own = events["split"] if policy.keep_source and "split" in events.column_names else None
    if table is not None:
        own = table.of(ids)
    if own is not None:
        positions = _own_splits(own)
        undivided = np.unique(ids[positions == NO_SPLIT])
        splits = np.where(positions < len(SPLITS), positions, splits).astype(np.uint8)
    # numpy sorts numbers of 16 bits several times faster.
    kind: Any = np.uint16 if plan.keys <= 1 << 16 else np.uint32
    buckets = assign_buckets(ids, plan.buckets).astype(kind)
    return splits.astype(kind) * kind(plan.buckets) + buckets, undivided


def _own_splits(column: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint8]:
    """Return the position in `SPLITS` of each name, `NO_SPLIT` where there is none."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = column.dictionary_encode(null_encoding="encode")
    positions = []
    for name in encoded.dictionary.to_pylist():
        if name is not None and name not in SPLIT_NAMES:
            raise InputError(
                f"split {name!r}: not one of {', '.join(SPLIT_NAMES)}; divide anew by --splits"
            )
        positions.append(NO_SPLIT if name is None else SPLITS.index(SPLIT_NAMES[name]))
    return np.array(positions, np.uint8)[encoded.indices.to_numpy()]


def side_table(part: Path, name: str) -> pa.Table | None:
    """Return the part's table called `name`, None if it has none."""
    path = part / f"{name}.parquet"
    return files.open_parquet(path).read() if path.exists() else None


def totals(parts: list[Path]) -> dict[str, int]:
    """Return the sums of rows and files read and refused."""
    each = [json.loads((part / TOTALS).read_text()) for part in parts]
    return {key: sum(part[key] for part in each) for key in each[0]} if each else {}


def stacked(parts: list[Path], name: str, schema: pa.Schema) -> pa.Table:
    """Return the tables of all parts that are called `name`, end to end."""
    tables = [side_table(part, name) for part in parts]
    there = [table.cast(schema) for table in tables if table is not None]
    return pa.concat_tables([schema.empty_table(), *there])
