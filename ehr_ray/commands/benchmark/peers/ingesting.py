"""One long table to a cohort, here and as statements of DuckDB that give the same.

Both are a command of their own, from nothing, on one thread; `compared` says what must be the same
of what they write. `STATEMENTS` leave out what an ingest does besides: ids and codes in several
spellings, thousands and inequalities, times with zones, checksums of pages, going on after a kill.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ehr_ray.commands.benchmark.peers.preparing import from_nothing
from ehr_ray.commands.benchmark.peers.timing import Figures, in_turn, library
from ehr_ray.errors import RunError
from ehr_ray.events.manifest import FOLDER
from ehr_ray.events.mixing import FIRST, GOLDEN, SECOND, splitmix64
from ehr_ray.events.schema import EVENTS, ORIGIN_CODES, SPLITS
from ehr_ray.events.vocabulary import QUANTILES
from ehr_ray.sources.building.shards import KEPT, MIN_SHARDS, ROWS_PER_SHARD
from ehr_ray.sources.parsing.quantities import UNREADABLE
from ehr_ray.sources.parsing.quarantine import KINDS
from ehr_ray.sources.splits import DEFAULT_FRACTIONS, NUM_BUCKETS

ROWS: Final = 3_000_000
SUBJECTS: Final = 60_000
CODES: Final = 300
BAD: Final = 1_000
"""Of so many rows of the CSV one has a time that is none, and one a value."""
TOLERANCE: Final = 1e-9
"""Of means, deviations and quantiles, relative to the largest of a code: they are summed in another
order. All else is equal."""
KINDS_OF_FILE: Final = ("csv", "parquet")
COLUMNS: Final = {
    "--id-column": "stay",
    "--time-column": "hours",
    "--time-unit": "hours",
    "--code-column": "item",
    "--value-column": "reading",
}

READ: Final = {
    "csv": """read_csv('{input}', header = true, store_rejects = true, columns =
        {{'stay': 'BIGINT', 'hours': 'DOUBLE', 'item': 'VARCHAR', 'reading': 'VARCHAR'}})""",
    "parquet": "read_parquet('{input}')",
}
EPOCH: Final = "TIMESTAMP '2000-01-01'"
_SALT: Final = int(splitmix64(np.zeros(1, np.uint64))[0])
_FIRST, _SECOND = np.cumsum(DEFAULT_FRACTIONS)[:2].tolist()

STATEMENTS: Final = f"""
SET threads = 1;
CREATE MACRO low(x) AS (x & 18446744073709551615::UHUGEINT)::UBIGINT;
CREATE MACRO plus64(a, b) AS low(a::UHUGEINT + b::UHUGEINT);
CREATE MACRO times64(a, b) AS low(a::UHUGEINT * b::UHUGEINT);
CREATE MACRO spread(x, n) AS xor(x, x >> n);
CREATE MACRO mixed(x) AS spread(times64(spread(times64(spread(
    plus64(x, {GOLDEN}), 30), {FIRST}), 27), {SECOND}), 31);
CREATE MACRO is_origin(code) AS list_contains({[*ORIGIN_CODES]}, code)
    OR {" OR ".join(f"starts_with(code, '{name}/')" for name in ORIGIN_CODES)};
CREATE MACRO name_of(part) AS {[*SPLITS]}[part + 1];

CREATE TEMP TABLE rows AS
SELECT row_number() OVER () AS seq, stay AS subject_id,
    {EPOCH} + to_microseconds(round_even(hours * 60.0 * 60e6, 0)::BIGINT) AS time,
    trim(item) AS code, reading IS NOT NULL AND number IS NULL AS odd,
    CASE WHEN abs(number) <= {float(np.finfo(np.float32).max)!r} THEN number::FLOAT END
        AS numeric_value
FROM (SELECT *, TRY_CAST(reading AS DOUBLE) AS number FROM {{read}});

CREATE TEMP TABLE subjects AS
SELECT subject_id, least(2, (share >= {_FIRST!r})::INT + (share >= {_SECOND!r})::INT) AS part,
    (mixed(xor(subject_id::UBIGINT, 18446744073709551615)) % {NUM_BUCKETS})::INT AS bucket
FROM (SELECT subject_id, (mixed(xor(subject_id::UBIGINT, {_SALT})) >> 11)::DOUBLE
    / {2.0**53!r} AS share FROM (SELECT DISTINCT subject_id FROM rows));

CREATE TEMP TABLE sizes AS
SELECT part, ceil(rows / least({ROWS_PER_SHARD}, ceil(max(rows) OVER () / {MIN_SHARDS})))::INT
    AS shards FROM (SELECT part, count(*) AS rows FROM rows JOIN subjects USING (subject_id)
    GROUP BY part);

CREATE TEMP TABLE events AS
SELECT part, bucket * shards // {NUM_BUCKETS} AS shard, every.*
FROM (
    SELECT seq, subject_id, time, code, numeric_value FROM rows
    UNION ALL
    SELECT 0, subject_id, {EPOCH}, 'ADMISSION', NULL FROM subjects WHERE subject_id NOT IN
        (SELECT subject_id FROM rows WHERE time = {EPOCH} AND is_origin(code))
) every JOIN subjects USING (subject_id) JOIN sizes USING (part);

CREATE TEMP TABLE counted AS
SELECT * FROM (SELECT part, shard, code, count(*) AS count, count(numeric_value) AS num_values,
        avg(numeric_value::DOUBLE) AS mean,
        var_pop(numeric_value::DOUBLE) * count(numeric_value) AS squares
    FROM events GROUP BY ALL)
JOIN (SELECT part, shard, code, count(*) AS num_subjects, count(*) FILTER (timed) AS num_timed,
        count(*) FILTER (static) AS num_static
    FROM (SELECT part, shard, code, subject_id, bool_or(time IS NOT NULL) AS timed,
        bool_or(time IS NULL) AS static FROM events GROUP BY ALL) GROUP BY ALL)
USING (part, shard, code);

COPY (SELECT name_of(part) AS split, * EXCLUDE (part) FROM
    (SELECT part, shard, count(*) AS events, count(DISTINCT subject_id) AS subjects,
        min(time) AS min_time, max(time) AS max_time FROM events GROUP BY ALL)
    JOIN (SELECT part, shard, list(counted) AS codes FROM counted GROUP BY ALL)
    USING (part, shard)) TO '{{output}}/manifest.parquet';

COPY (SELECT names.code, coalesce(count, 0) AS count, coalesce(num_subjects, 0) AS num_subjects,
        coalesce(num_values, 0) AS num_values, mean, std, quantiles
    FROM (SELECT DISTINCT code FROM counted) names
    LEFT JOIN (SELECT code, sum(count)::BIGINT AS count, sum(num_subjects)::BIGINT AS num_subjects
        FROM counted WHERE part = 0 GROUP BY code) USING (code)
    LEFT JOIN (SELECT code, count(numeric_value) AS num_values,
        avg(numeric_value::DOUBLE) AS mean, stddev_pop(numeric_value::DOUBLE) AS std,
        quantile_cont(numeric_value::DOUBLE, {[*QUANTILES]}) AS quantiles
        FROM events WHERE part = 0 GROUP BY code) USING (code)
    ORDER BY code) TO '{{output}}/codes.parquet';

COPY (SELECT subject_id, name_of(part) AS split FROM subjects ORDER BY subject_id)
TO '{{output}}/subject_splits.parquet';

COPY (
    SELECT code, '{KEPT}' AS change, sum(n - 1)::BIGINT AS count FROM (SELECT code, count(*) AS n
        FROM rows GROUP BY subject_id, time, code, numeric_value HAVING n > 1) GROUP BY code
    UNION ALL
    SELECT code, '{KINDS[UNREADABLE]}', count(*) FROM rows WHERE odd GROUP BY code
) TO '{{output}}/changes.parquet';
"""
REFUSED: Final = """
COPY (SELECT file_path AS file, line, error_message AS reason FROM reject_errors JOIN reject_scans
    USING (scan_id, file_id) ORDER BY line) TO '{output}/rejected.parquet';
"""
PROGRAM: Final = f"""
import duckdb, os, sys
output, statements = sys.argv[1:]
os.makedirs(output)
database = duckdb.connect()
database.execute(statements)
for part, shard in database.execute("SELECT DISTINCT part, shard FROM events").fetchall():
    folder = os.path.join(output, "data", {SPLITS}[part])
    os.makedirs(folder, exist_ok=True)
    database.execute(
        f"COPY (SELECT subject_id, time, code, numeric_value FROM events WHERE part = {{part}} AND "
        f"shard = {{shard}} ORDER BY subject_id, time NULLS FIRST, seq) "
        f"TO '{{folder}}/{{shard}}.parquet' (FORMAT parquet, COMPRESSION zstd)"
    )
"""
"""A shard sorted and written at a time: faster than one sort, or PARTITION_BY."""


def ingesting(place: Path, rows: int = ROWS) -> Figures:
    """Return CPU seconds of both, of a CSV and of a Parquet file; RunError if results differ.

    `place` is a folder for the files and what is made of them.
    """
    module = library("duckdb")
    if isinstance(module, str):
        return {"ingest, DuckDB": module}
    figures: Figures = {}
    for kind, path in made_up(place, rows).items():
        targets = {"here": place / f"here-{kind}", "DuckDB": place / f"there-{kind}"}
        ways = ways_of(kind, path, targets)
        for way in ways.values():
            way()
        found = compared(targets["here"], targets["DuckDB"])
        figures |= {f"{kind}, {what}": number for what, number in found.items()}
        spent = in_turn(ways)
        figures |= {f"{kind}, {name}, CPU seconds": seconds for name, seconds in spent.items()}
        figures[f"{kind}, here over DuckDB"] = spent["here"] / spent["DuckDB"]
    return figures


def ways_of(kind: str, path: Path, targets: dict[str, Path]) -> dict[str, Callable[[], None]]:
    """Return both commands: each removes its target first."""
    here = [sys.executable, "-m", "ehr_ray.cli.main", "ingest", "--source", "table", "--cpus", "1"]
    here += ["--input", str(path), "--output", str(targets["here"])]
    here += [word for pair in COLUMNS.items() for word in pair]
    there = [sys.executable, "-c", PROGRAM, str(targets["DuckDB"]), statements(kind, path, targets)]
    commands = {"here": here, "DuckDB": there}
    return {
        name: partial(from_nothing, targets[name], command) for name, command in commands.items()
    }


def statements(kind: str, path: Path, targets: dict[str, Path]) -> str:
    """Return what DuckDB does of a file."""
    text = STATEMENTS + (REFUSED if kind == "csv" else "")
    return text.format(read=READ[kind].format(input=path), output=targets["DuckDB"])


def made_up(place: Path, rows: int) -> dict[str, Path]:
    """Write made-up events in no order, as CSV with bad cells and as Parquet without; return both.

    Some rows stand twice.
    """
    place.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    once = rows - rows // BAD
    order = np.r_[np.arange(once), random.integers(0, once, rows - once)]
    table = pa.table(
        {
            "stay": random.integers(0, max(1, rows * SUBJECTS // ROWS), once),
            "hours": np.round(random.random(once) * 200, 4),
            "item": np.char.add("ITEM//", random.integers(0, CODES, once).astype(str)),
            "reading": np.round(random.normal(size=once), 3),
        }
    ).take(pa.array(order))
    paths = {kind: place / f"events.{kind}" for kind in KINDS_OF_FILE}
    pq.write_table(table, paths["parquet"])
    for column, word in (("hours", "soon"), ("reading", "high")):
        text = table[column].cast(pa.string()).to_numpy()
        text[random.integers(0, rows, rows // BAD)] = word
        table = table.set_column(table.column_names.index(column), column, pa.array(text))
    pa_csv.write_csv(table, paths["csv"], pa_csv.WriteOptions(quoting_style="none"))
    return paths


def compared(here: Path, there: Path) -> Figures:
    """Return how many rows both wrote; RunError where they are not the same."""
    figures: Figures = {}
    for split in SPLITS:
        events = (by_subject(sorted((f / "data" / split).glob("*.parquet"))) for f in (here, there))
        figures |= same(f"events of {split}", *events)
    for name, columns in BESIDE.items():
        ours = pq.read_table(here / "metadata" / f"{name}.parquet")
        path = there / f"{name}.parquet"  # of Parquet DuckDB refuses no row
        theirs = pq.read_table(path) if path.exists() else ours.slice(0, 0)
        order = [(column, "ascending") for column in columns]
        ours, theirs = (each.select(columns).sort_by(order) for each in (ours, theirs))
        figures |= same(name, ours, theirs)
    ours, theirs = (
        pq.read_table(path)
        for path in (here / "metadata" / "codes.parquet", there / "codes.parquet")
    )
    for name in ("mean", "std", "quantiles"):
        close(name, ours[name], theirs[name])
    manifests = pq.read_table(here / FOLDER), pq.read_table(there / "manifest.parquet")
    same("shards", *(summed_shards(manifest) for manifest in manifests))
    return figures | same("codes of shards", *(summed_codes(manifest) for manifest in manifests))


BESIDE: Final = {
    "subject_splits": ["subject_id", "split"],
    "rejected": ["line"],
    "changes": ["change", "code", "count"],
    "codes": ["code", "count", "num_subjects", "num_values"],
}
"""Tables beside the shards that must be equal, and in which columns."""


def summed_shards(manifest: pa.Table) -> pa.Table:
    """Return subjects, events and times by split: DuckDB's shards have other subjects."""
    sums = [("events", "sum"), ("subjects", "sum"), ("min_time", "min"), ("max_time", "max")]
    return manifest.group_by("split").aggregate(sums).sort_by("split")


def summed_codes(manifest: pa.Table) -> pa.Table:
    """Return counts by split and code."""
    counts = ["count", "num_values", "num_subjects", "num_timed", "num_static"]
    codes = manifest["codes"].combine_chunks()
    split = manifest["split"].take(codes.value_parent_indices())
    columns = {name: pc.struct_field(codes.flatten(), name) for name in ("code", *counts)}
    table = pa.table({"split": split, **columns}).group_by(["split", "code"])
    order = [("split", "ascending"), ("code", "ascending")]
    return table.aggregate([(name, "sum") for name in counts]).sort_by(order)


def by_subject(shards: Sequence[Path]) -> pa.Table:
    """Return the events of shards, those of a subject in the order in which they stand."""
    tables = [pq.ParquetFile(path).read(EVENTS.names) for path in shards]
    table = pa.concat_tables([EVENTS.empty_table(), *(each.cast(EVENTS) for each in tables)])
    return table.take(pa.array(np.argsort(table["subject_id"].to_numpy(), kind="stable")))


def same(what: str, ours: pa.Table, theirs: pa.Table) -> Figures:
    """Return the rows of two tables; RunError where they differ."""
    theirs = theirs.select(ours.column_names).cast(ours.schema)
    if not ours.combine_chunks().equals(theirs.combine_chunks()):
        raise RunError(
            f"--only ingest: {what} in DuckDB are others than in ehr_ray: {len(theirs):,} rows, "
            f"here {len(ours):,}"
        )
    return {f"{what}, rows of both": float(len(ours))}


def close(what: str, ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> None:
    """Raise RunError where numbers of codes differ by more than `TOLERANCE`."""
    if pa.types.is_list(ours.type):
        ours, theirs = (pc.list_flatten(each) for each in (ours, theirs))
    a, b = (np.array(each.to_pylist(), np.float64) for each in (ours, theirs))
    if a.shape != b.shape or not np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
        raise RunError(f"--only ingest: {what} of codes in DuckDB are others than in ehr_ray")
