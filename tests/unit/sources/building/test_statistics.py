import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.events import code_statistics
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.schema import EVENTS
from ehr_ray.sources.building.shards import Shard, write_shard
from ehr_ray.sources.building.staging import Plan
from ehr_ray.sources.building.statistics import (
    describe,
    join_counts,
    rows,
    sample_shard,
    samples,
    train_shards,
)
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
    return plan, shards


def test_jobs_a_shard_fit_what_one_walk_fits(made):
    plan, shards = made
    for shard in reversed(shards):
        describe(plan, shard)
    fit = join_counts(plan, shards)
    for shard in reversed(train_shards(shards)):
        sample_shard(plan, shard)
    paths = [shard.path(plan) for shard in shards]
    table = fit.table(samples(plan, shards))
    assert table.equals(fit_codes(paths[:2], paths[2:]), check_metadata=True)
    assert table["code"].to_pylist() == ["A", "B", "C", "only 0", "only 1", "only 2"]
    assert table["num_values"].to_pylist()[-1] == 0
    kept = sum(len(values) for sample in samples(plan, shards) for values in sample["values"])
    assert kept < 1000


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


def test_without_train_there_are_names_alone(made):
    plan, shards = made
    describe(plan, shards[2])
    fit = join_counts(plan, shards[2:])
    table = fit.table(samples(plan, shards[2:]))
    assert set(table["count"].to_pylist()) == {0}
    assert table["code"].to_pylist() == ["A", "B", "C", "only 2"]
