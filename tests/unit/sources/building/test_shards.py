from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.events.schema import EVENTS, SPLITS
from ehr_ray.sources.building import shards as module
from ehr_ray.sources.building.shards import MAX_SHARDS, Shard, gather, plan_shards
from ehr_ray.sources.building.staging import Plan, scatter
from ehr_ray.sources.source import Chunk, Source
from ehr_ray.sources.splits import NUM_BUCKETS, SplitPolicy

KEYS = len(SPLITS) * NUM_BUCKETS


@given(
    st.lists(
        st.tuples(st.integers(0, KEYS - 1), st.integers(1, 3_000_000)), min_size=1, max_size=60
    )
)
def test_shards_cover_every_bucket_once_and_none_is_empty(filled):
    counts = np.zeros(KEYS, np.int64)
    for key, rows in filled:
        counts[key] += rows
    covered = np.zeros(KEYS, int)
    for shard in plan_shards(counts):
        covered[shard.first : shard.last + 1] += 1
        assert counts[shard.first : shard.last + 1].sum() > 0
        assert shard.first // NUM_BUCKETS == shard.last // NUM_BUCKETS
    assert (covered <= 1).all()
    assert (covered[counts > 0] == 1).all()


def test_a_small_cohort_has_eight_train_shards_of_similar_size():
    counts = np.zeros(KEYS, np.int64)
    counts[:400] = 100
    counts[NUM_BUCKETS : NUM_BUCKETS + 50] = 100
    shards = plan_shards(counts)
    train = [counts[s.first : s.last + 1].sum() for s in shards if s.split == "train"]
    assert train == [5000] * 8
    assert [s.split for s in shards[8:]] == ["tuning"]


def test_fewer_subjects_than_shards_get_one_each():
    counts = np.zeros(KEYS, np.int64)
    counts[[5, 900]] = 7
    assert plan_shards(counts) == [Shard("train", 0, 5, 5), Shard("train", 1, 900, 900)]


@pytest.mark.parametrize(("rows", "shards"), [(20_000_000, 40), (2_000_000_000, MAX_SHARDS)])
def test_shards_hold_half_a_million_rows_until_there_would_be_too_many(rows, shards):
    counts = np.zeros(KEYS, np.int64)
    counts[:NUM_BUCKETS] = rows // NUM_BUCKETS
    assert abs(len(plan_shards(counts)) - shards) <= 1


events = st.lists(
    st.tuples(
        st.integers(-3, 3),
        st.one_of(st.none(), st.integers(-2, 3)),
        st.sampled_from(["HR", "Na", "ADMISSION", "ICU_ADMISSION//X"]),
    ),
    min_size=1,
    max_size=40,
)


def table(rows):
    epoch = np.datetime64(datetime(2000, 1, 1), "us")
    times = [None if t is None else epoch + np.timedelta64(t, "m") for _, t, _ in rows]
    values = np.arange(len(rows), dtype=np.float32)
    ids, codes = [r[0] for r in rows], [r[2] for r in rows]
    return pa.table([ids, pa.array(times, pa.timestamp("us")), codes, values], schema=EVENTS)


def reference(rows, relative):
    """Sort by subject and time in plain Python; add admissions; keep ties in order."""
    out = []
    for subject in sorted({r[0] for r in rows}):
        own = [(r[1], r[2], float(n)) for n, r in enumerate(rows) if r[0] == subject]
        if relative and not any(t == 0 and "ADMISSION" in c for t, c, _ in own):
            own.insert(0, (0, "ADMISSION", None))
        own.sort(key=lambda e: (e[0] is not None, e[0] or 0))
        out += [(subject, *event) for event in own]
    return out


@settings(deadline=None)
@given(events, st.booleans(), st.integers(1, 7))
def test_scatter_and_gather_equal_a_plain_sort(tmp_path_factory, rows, relative, cut):
    tmp_path = tmp_path_factory.mktemp("staging")
    chunks = [table(rows).slice(i, cut) for i in range(0, len(rows), cut)]
    plan = Plan("made", None, SplitPolicy((1.0, 0.0, 0.0)), tmp_path)
    read = lambda unit, options: (Chunk(events=chunk) for chunk in unit)  # noqa: E731, ARG005
    source = Source(name="made", description="", options=object, units=None, read=read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ehr_ray.sources.building.staging.get_source", lambda _: source)
        units = [chunks[: len(chunks) // 2], chunks[len(chunks) // 2 :]]
        for i, unit in enumerate(units):
            scatter(plan, i, unit)
    shard = Shard("train", 0, 0, NUM_BUCKETS - 1)
    gather(plan, shard, 2, relative)
    result = pq.ParquetFile(shard.path(plan)).read().to_pylist()
    minute = lambda t: None if t is None else round((t - datetime(2000, 1, 1)).total_seconds() / 60)  # noqa: E731
    found = [(r["subject_id"], minute(r["time"]), r["code"], r["numeric_value"]) for r in result]
    assert found == reference(rows, relative)
    subjects = pq.ParquetFile(shard.subjects_path(plan)).read().to_pylist()
    for row in subjects:
        own = [f for f in found if f[0] == row["subject_id"]]
        timed = [f[1] for f in own if f[1] is not None]
        admitted = [f[1] for f in own if f[1] is not None and "ADMISSION" in f[2]]
        origin = (admitted or timed or [None])[0]
        assert (row["events"], minute(row["origin"]), minute(row["last"])) == (
            len(own),
            origin,
            timed[-1] if timed else None,
        )


NAT = np.iinfo(np.int64).min


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1)),
            st.one_of(st.integers(-2, 2), st.just(NAT), st.integers(-(2**63), 2**63 - 1)),
        ),
        max_size=30,
    ),
    st.sampled_from([1, 60_000_000]),
    st.booleans(),
)
def test_rows_are_ordered_as_a_stable_sort_orders_them(rows, unit, near):
    if near:
        rows = [(i % 5, t if t == NAT else t % 1000 * unit) for i, t in rows]
    ids, times = (np.array([row[n] for row in rows], np.int64) for n in (0, 1))
    np.testing.assert_array_equal(module.order_of(ids, times), np.lexsort((times, ids)))


def test_row_groups_are_bounded(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 10)
    module.write_shard(table([(1, i, "HR") for i in range(35)]), tmp_path / "x.parquet")
    assert pq.read_metadata(tmp_path / "x.parquet").num_row_groups == 4
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
