"""Another cohort with the codes and units of the run's: a copy of its shards, by a code map."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.events.code_map import CodeMap
from ehr_ray.events.patients import cohort_shards
from ehr_ray.events.schema import EVENTS
from ehr_ray.events.vocabulary import Vocabulary, as_float32
from ehr_ray.runtime.data.tasks import Say, run_jobs
from ehr_ray.storage import files, in_place, sync
from ehr_ray.storage.paths import canonical, inside, local, uri_of, written

BATCH_ROWS = 1 << 18
REMEDY = "ingest the cohort again"


def mapped_cohort(
    cohort: Path,
    splits: Sequence[str],
    code_map: CodeMap,
    vocabulary: Vocabulary,
    folder: Path,
    *,
    on_ray: bool,
    say: Say,
) -> tuple[Path, list[str]]:
    """Write a cohort of the splits asked for to `folder`; return it, and lines on the map.

    Labels and metadata are as they were. Raises `InputError` where no event has a code of the map,
    or the model knows no code that it maps to.
    """
    lines = [code_map.check_targets(vocabulary.codes)]
    jobs = [
        (canonical(shard), written(folder / shard.relative_to(cohort)))
        for split in splits
        for shard in cohort_shards(cohort, split)
    ]
    found = run_jobs(
        MapShard(code_map), jobs, on_ray=on_ray, say=say, verb="mapped codes of shards"
    )
    lines.append(code_map.check(code for codes in found for code in json.loads(codes)))
    for name in ("labels", "metadata"):
        if (cohort / name).is_dir():
            shutil.copytree(cohort / name, folder / name, dirs_exist_ok=True)
            sync.push(folder / name)
    return sync.fetch_cohort(folder), [line for line in lines if line is not None]


@dataclass(frozen=True)
class MapShard:
    """The job of a shard: its copy, in the order it has; the mapped codes come back as JSON."""

    code_map: CodeMap

    def __call__(self, job: tuple[str, str]) -> str:
        """Write the copy, a batch of rows at a time; in a store it is there alone at the end."""
        source, target = sync.in_store(job[0]), local(job[1])
        codes: set[str] = set()
        with (
            files.new_file(target) as partial,
            pq.ParquetWriter(partial, EVENTS, **files.CHECKED) as writer,
        ):
            for table in _tables(source):
                events, counts = self.code_map.apply(table)
                codes.update(counts.field("values").to_pylist())
                writer.write_table(events)
        sync.push(job[1])
        if uri_of(job[1]) is not None:
            inside(target).unlink()
        return json.dumps(sorted(codes))


def _tables(shard: Path) -> Iterator[pa.Table]:
    """Yield the `EVENTS` of a shard, a batch of rows at a time."""
    with files.reads(shard, REMEDY), in_place.parquet(shard, REMEDY) as file:
        there = [name for name in EVENTS.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(BATCH_ROWS, columns=there):
            yield _events(pa.Table.from_batches([batch]))


def _events(table: pa.Table) -> pa.Table:
    """Return the `EVENTS` columns of rows of any MEDS dataset."""
    value = (
        pa.array(as_float32(table["numeric_value"]), pa.float32(), from_pandas=True)
        if "numeric_value" in table.column_names
        else pa.nulls(len(table), pa.float32())
    )
    columns = [table[name].cast(EVENTS.field(name).type) for name in EVENTS.names[:3]]
    return pa.table([*columns, value], schema=EVENTS)
