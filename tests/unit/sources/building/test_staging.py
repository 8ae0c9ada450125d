import json

import numpy as np
import pyarrow as pa
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.schema import EVENTS, REJECTED, SPLITS
from ehr_ray.sources.building.keyed import read_keys, rows_by_key
from ehr_ray.sources.building.staging import (
    STAGED,
    Plan,
    scatter,
    totals,
)
from ehr_ray.sources.source import Chunk, Source, Unit
from ehr_ray.sources.splits import NUM_BUCKETS, SplitPolicy, assign_buckets, assign_splits


def events(ids, split=None):
    table = pa.table(
        [
            ids,
            pa.nulls(len(ids), pa.timestamp("us")),
            ["A"] * len(ids),
            np.arange(len(ids), dtype="f4"),
        ],
        schema=EVENTS,
    )
    return table if split is None else table.append_column("split", pa.array(split, pa.string()))


def between(part, first, last):
    return read_keys([part], STAGED, first, last, EVENTS)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    def run(*units, policy=None):
        plan = Plan("made", None, policy or SplitPolicy(), tmp_path)
        read = lambda unit, options: iter(units[unit.start])  # noqa: E731, ARG005
        source = Source(name="made", description="", options=object, units=None, read=read)
        monkeypatch.setattr("ehr_ray.sources.building.staging.get_source", lambda _: source)
        for i in range(len(units)):
            scatter(plan, i, Unit(start=i))
        return [plan.part(i) for i in range(len(units))]

    return run


def test_rows_are_found_by_split_and_bucket_in_source_order(stage):
    ids = np.random.default_rng(0).integers(0, 300, 5000)
    (part,) = stage([Chunk(events(ids[:3000])), Chunk(events(ids[3000:]))])
    keys = assign_splits(ids, SplitPolicy()).astype(int) * NUM_BUCKETS + assign_buckets(ids)
    seen = 0
    for key in np.unique(keys):
        rows = between(part, key, key)
        assert rows["subject_id"].to_pylist() == ids[keys == key].tolist()
        seen += len(rows)
    assert seen == len(ids)
    counts = rows_by_key(part, STAGED, len(SPLITS) * NUM_BUCKETS)
    np.testing.assert_array_equal(counts, np.bincount(keys, minlength=len(counts)))


def test_a_split_that_the_source_says_wins_unless_splits_are_asked(stage):
    chunk = Chunk(events([1, 2, 3], ["valid", "test", None]))
    (part,) = stage([chunk])
    tuning = between(part, NUM_BUCKETS, 2 * NUM_BUCKETS - 1)
    assert 1 in tuning["subject_id"].to_pylist()
    assert 2 not in tuning["subject_id"].to_pylist()


def test_asked_splits_override(stage):
    policy = SplitPolicy((1.0, 0.0, 0.0), keep_source=False)
    (part,) = stage([Chunk(events([1, 2], ["valid", "test"]))], policy=policy)
    assert len(between(part, 0, NUM_BUCKETS - 1)) == 2


def test_a_finished_part_is_not_read_again(stage):
    (part,) = stage([Chunk(events([1]))])
    (again,) = stage([Chunk(events([1, 2, 3]))])
    assert part == again
    assert rows_by_key(part, STAGED, len(SPLITS) * NUM_BUCKETS).sum() == 1


def test_totals_tell_rows_from_files(stage):
    rejects = pa.table([["f", "f", "g"], [1, 2, None], ["a", "b", "c"]], schema=REJECTED)
    parts = stage(
        [Chunk(rejects=rejects, rows_read=9, files_read=2)], [Chunk(rows_read=1, files_read=1)]
    )
    assert totals(parts) == {
        "rows_read": 10,
        "files_read": 3,
        "rejected_rows": 2,
        "rejected_files": 1,
        "values": 0,
    }
    assert json.loads((parts[1] / "part.json").read_text())["rows_read"] == 1


@pytest.mark.parametrize("task", ["a/b", "", ".hidden"])
def test_a_task_must_be_a_file_name(stage, task):
    with pytest.raises(InputError, match="the name cannot be a file's"):
        stage([Chunk(labels={task: pa.table({"subject_id": [1]})})])
