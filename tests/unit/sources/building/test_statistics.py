import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.events import code_statistics, manifest
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.schema import EVENTS
from ehr_ray.sources.building import statistics
from ehr_ray.sources.building.shards import KEPT, Shard, write_shard
from ehr_ray.sources.building.staging import Plan
from ehr_ray.sources.building.statistics import (
    describe,
    find_quantiles,
    found_quantiles,
    groups_of,
    join_counts,
    join_group,
    joined_repeats,
    rows,
    sample_path,
    sample_shard,
    train_shards,
    write_manifest,
)
from ehr_ray.sources.source import count_codes
from ehr_ray.sources.splits import SplitPolicy


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Return a plan and its shards: two of train, the second with a code more, and one other."""
    monkeypatch.setattr(code_statistics, "QUANTILE_SAMPLE", 200)
    plan = Plan("made", None, SplitPolicy(), tmp_path)
    shards = [Shard("train", 0, 0, 9), Shard("train", 1, 10, 19), Shard("held_out", 0, 0, 9)]
    random = np.random.default_rng(0)
    for n, shard in enumerate(shards):
        values = random.normal(size=3000).astype("f4")
        table = pa.table(
            [
                np.sort(random.integers(100 * n, 100 * n + 90, 3000)),
                pa.nulls(3000, pa.timestamp("us")),
                random.choice([*"ABC", f"only {n}"], 3000, p=[0.7, 0.2, 0.05, 0.05]),
                pa.array(values, mask=values > 1.5),
            ],
            schema=EVENTS,
        )
        write_shard(table, shard.path(plan))
        write_shard(count_codes(pa.array([f"again {n}", "A"]), KEPT), shard.repeats_path(plan))
    return plan, shards


def fitted(plan, shards):
    """Do what the jobs of an ingest do, later ones first; return the table of codes."""
    for shard in reversed(shards):
        describe(plan, shard)
    for group, some in reversed([*enumerate(groups_of(shards))]):
        join_group(plan, group, some)
    fit = join_counts(plan, shards)
    train = train_shards(shards)
    for shard in reversed(train):
        sample_shard(plan, shard)
    ranges = fit.ranges()
    for number, codes in reversed([*enumerate(ranges)]):
        find_quantiles(plan, number, codes, train)
    return fit.table(found_quantiles(plan, len(ranges)))


@pytest.mark.parametrize(("group", "values"), [(64, 10**6), (1, 10**6), (2, 250), (2, 1)])
def test_jobs_fit_what_one_walk_fits(made, monkeypatch, group, values):
    for module in (code_statistics, statistics):
        monkeypatch.setattr(module, "GROUP_SHARDS", group)
    monkeypatch.setattr(code_statistics, "RANGE_VALUES", values)
    plan, shards = made
    paths = [shard.path(plan) for shard in shards]
    table = fitted(plan, shards)
    assert table.equals(fit_codes(paths[:2], paths[2:]), check_metadata=True)
    assert table["code"].to_pylist() == ["A", "B", "C", "only 0", "only 1", "only 2"]
    assert table["num_values"].to_pylist()[-1] == 0
    samples = [pq.read_table(sample_path(plan, shard)) for shard in train_shards(shards)]
    assert sum(len(values) for sample in samples for values in sample["values"]) < 1000


def test_rows_that_are_there_stay(made):
    plan, shards = made
    describe(plan, shards[0])
    shards[0].path(plan).unlink()
    describe(plan, shards[0])
    (row,) = rows(plan, shards[:1])
    assert (row["shard"].to_pylist(), row["events"].to_pylist()) == (
        ["data/train/0.parquet"],
        [3000],
    )


def test_groups_write_the_manifest_that_one_process_writes(made, monkeypatch, tmp_path):
    monkeypatch.setattr(statistics, "GROUP_SHARDS", 2)
    monkeypatch.setattr(manifest, "SHARDS_PER_FILE", 2)
    plan, shards = made
    fitted(plan, shards)
    write_manifest(plan, shards, tmp_path / "ours")
    manifest.write_manifest(rows(plan, shards), tmp_path / "whole")
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("ours", "whole")]
    assert files[0] == files[1]
    assert sorted(files[0]) == ["000000.parquet", "000001.parquet"]
    first, second = (table.to_pydict() for table in joined_repeats(plan, shards))
    assert dict(zip(first["code"], first["count"], strict=True)) == {
        "again 0": 1,
        "again 1": 1,
        "A": 2,
    }
    assert second["code"] == ["again 2", "A"]


def test_without_train_there_are_names_alone(made):
    plan, shards = made
    table = fitted(plan, shards[2:])
    assert set(table["count"].to_pylist()) == {0}
    assert table["code"].to_pylist() == ["A", "B", "C", "only 2"]
