"""First pass: the chunks of a unit, tagged with split and hash bucket, in one staging part.

A part is a folder that appears by one rename, so an interrupted ingest keeps what is finished:

    parts/<n>/events        by key = split * NUM_BUCKETS + bucket (keyed.py)
              part.json     rows and files read and refused
              {rejected,changes,inequalities,subjects,folders,names,codes,undivided,groups}.parquet
              labels/<task>.parquet
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehr_ray.errors import InputError
from ehr_ray.events.code_map import CodeMap
from ehr_ray.events.schema import EVENTS, ORIGIN_CODES, REJECTED, SPLIT_NAMES, SPLITS
from ehr_ray.sources.building.keyed import KeyedWriter
from ehr_ray.sources.building.limits import Limits
from ehr_ray.sources.parsing.identifiers import NAMES, spellings
from ehr_ray.sources.parsing.split_table import read_splits
from ehr_ray.sources.source import Chunk, Unit, changes_of, get_source
from ehr_ray.sources.splits import (
    NUM_BUCKETS,
    SplitPolicy,
    assign_buckets,
    assign_splits,
)
from ehr_ray.storage import files

NO_SPLIT: Final = 255
NUM_KEYS = len(SPLITS) * NUM_BUCKETS
Repeats = Literal["keep", "drop"]

MAPPED: Final = "code mapped"

GROUPS: Final = pa.schema([pa.field("subject_id", pa.int64()), pa.field("group", pa.string())])
"""Who shares a value of the code that subjects are divided by."""

STAGED: Final = "events"
"""The table of a part, or of a divided one, with its events by key."""


@dataclass(frozen=True)
class Plan:
    """What every task of one ingest needs to know.

    Args:
        source: name of the source.
        options: its options record.
        policy: how subjects are divided.
        staging: folder of the unfinished cohort.
        origin: codes of the time origin.
        limits: plausible ranges and units of values.
        repeats: whether exact repeats of a row are kept, or only the first of them.
        code_map: what becomes of codes, after ranges and units.
        split_by: a static code; everybody who shares a value of it comes into one split.
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

    def part(self, index: int) -> Path:
        """Return the folder of the part that unit `index` makes."""
        return self.staging / "parts" / f"{index:06d}"

    def keyed(self, index: int) -> Path:
        """Return the folder of the part's events by their final keys, and of their counts."""
        folder = "parts" if self.split_by is None else "divided"
        return self.staging / folder / f"{index:06d}"


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
    with KeyedWriter(part, STAGED, EVENTS, NUM_KEYS) as writer:
        for chunk in chunks:
            if chunk.lost_rows is not None:
                break
            events, changes = plan.limits.apply(chunk.events)
            if plan.code_map is not None:
                events, mapped = plan.code_map.apply(events)
                changes = pa.concat_tables([changes, changes_of(mapped, MAPPED)])
            keys, undivided = event_keys(events, plan.policy)
            if plan.split_by is not None:
                tables.setdefault("groups", []).append(groups_of(events, plan.split_by))
            writer.write(events.select(EVENTS.names), keys)
            _add(totals, chunk)
            tables.setdefault("changes", []).append(changes)
            for name, table in _side_tables(chunk):
                tables.setdefault(name, []).append(table)
            if (
                plan.policy.keep_source
                and plan.policy.file is not None
                and "split" in chunk.events.schema.names
            ):
                folders = chunk.events.select(["subject_id", "split"])
                folders = folders.group_by(["subject_id", "split"]).aggregate([])
                tables.setdefault("folders", []).append(folders)
            if len(undivided):
                tables.setdefault("undivided", []).append(pa.table({"subject_id": undivided}))
    if chunk is not None and chunk.lost_rows is not None:
        with KeyedWriter(part, STAGED, EVENTS, NUM_KEYS):
            pass
        totals, tables = _new_totals()
        _add(totals, chunk)
        for name in ("rows_read", "rejected_rows"):
            totals[name] += chunk.lost_rows
        tables = {name: [table] for name, table in _side_tables(chunk)}
    for name, pieces in tables.items():
        path = part / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.concat_tables(pieces), path, **files.CHECKED)
    (part / "part.json").write_text(json.dumps(totals))


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
    for task, table in chunk.labels.items():
        if not task or "/" in task or task.startswith("."):
            raise InputError(f"label task {task!r}: the name cannot be a file's; rename it")
        yield f"labels/{task}", table


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


def event_keys(
    events: pa.Table, policy: SplitPolicy
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    """Return (the key of each row, the undivided).

    Those are the subjects that the source's own splits, or the table of splits, leave out.
    """
    ids = events["subject_id"].to_numpy()
    splits, undivided = assign_splits(ids, policy), ids[:0]
    own = events["split"] if policy.keep_source and "split" in events.column_names else None
    if policy.file is not None:
        own = read_splits(str(policy.file)).of(ids)
    if own is not None:
        positions = _own_splits(own)
        undivided = np.unique(ids[positions == NO_SPLIT])
        splits = np.where(positions < len(SPLITS), positions, splits).astype(np.uint8)
    return splits.astype(np.uint16) * np.uint16(NUM_BUCKETS) + assign_buckets(ids), undivided


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


def part_labels(part: Path) -> dict[str, pa.Table]:
    """Return the part's label tables by task."""
    paths = sorted((part / "labels").glob("*.parquet"))
    return {path.stem: files.open_parquet(path).read() for path in paths}


def totals(parts: list[Path]) -> dict[str, int]:
    """Return the sums of rows and files read and refused."""
    each = [json.loads((part / "part.json").read_text()) for part in parts]
    return {key: sum(part[key] for part in each) for key in each[0]} if each else {}


def check_subjects(parts: list[Path]) -> int:
    """Return how many ids are written in several ways that cannot mean two subjects.

    Raises `InputError` where one id came from two files, or may be two subjects'.
    """
    ids = [_column(part, "subjects", "subject_id") for part in parts]
    twice = _first_repeat(np.concatenate(ids)) if ids else None
    if twice is not None:
        names = [_files_of(part, twice) for part in parts]
        first, second, *_ = [name for found in names for name in found]
        raise InputError(f"one subject is in {first} and in {second}: remove one of them")
    harmless, doubtful, hashed = spellings(stacked(parts, "names", NAMES))
    if hashed:
        raise InputError(
            f"{hashed} times two names of subjects hash to one id; give them numbers instead"
        )
    if doubtful:
        raise InputError(
            f"{doubtful} subject ids are written in ways that may be two subjects, as 007 and 7 "
            "or +7 and 7: write each in one way"
        )
    return harmless


def stacked(parts: list[Path], name: str, schema: pa.Schema) -> pa.Table:
    """Return the tables of all parts that are called `name`, end to end."""
    tables = [side_table(part, name) for part in parts]
    there = [table.cast(schema) for table in tables if table is not None]
    return pa.concat_tables([schema.empty_table(), *there])


def _column(part: Path, table: str, column: str) -> npt.NDArray[np.int64]:
    path = part / f"{table}.parquet"
    if not path.exists():
        return np.empty(0, np.int64)
    values: npt.NDArray[np.int64] = files.open_parquet(path).read([column])[column].to_numpy()
    return values


def check_folders(parts: list[Path]) -> None:
    """Raise `InputError` where a subject lies in the folders of two splits.

    A table says which of them is meant, but not which of its events: they may be of two subjects.
    """
    found = [table for part in parts if (table := side_table(part, "folders")) is not None]
    if not found:
        return
    pairs = pa.concat_tables(found).group_by(["subject_id", "split"]).aggregate([]).drop_null()
    counts = pairs.group_by("subject_id").aggregate([("split", "count")])
    twice = counts.filter(pc.greater(counts["split_count"], 1))
    if len(twice):
        one = pairs.filter(pc.equal(pairs["subject_id"], twice["subject_id"][0]))
        first, second, *_ = sorted(one["split"].to_pylist())
        raise InputError(
            f"{len(twice):,} subjects lie in the folders of more than one split, the first of them "
            f"in {first} and in {second}: give each subject one, or divide anew by --splits, which "
            "joins all records of an id as one patient's"
        )


def undivided(parts: list[Path]) -> int:
    """Return how many subjects no split was said of, and a hash decided."""
    return len(np.unique(np.concatenate([_column(p, "undivided", "subject_id") for p in parts])))


def _first_repeat(ids: npt.NDArray[np.int64]) -> int | None:
    ids = np.sort(ids)
    repeats = np.flatnonzero(ids[1:] == ids[:-1])
    return int(ids[repeats[0]]) if len(repeats) else None


def _files_of(part: Path, subject: int) -> list[str]:
    table = side_table(part, "subjects")
    if table is None:
        return []
    names: list[str] = table.filter(pc.equal(table["subject_id"], subject))["file"].to_pylist()
    return names
