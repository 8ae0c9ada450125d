import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.events import code_statistics
from ehr_ray.events.code_statistics import CodeFit, count_shard, fit_codes
from ehr_ray.events.vocabulary import CODES, QUANTILES, Vocabulary

values = st.one_of(st.none(), st.floats(-1e4, 1e4, width=32), st.just(float("nan")))
events = st.lists(st.tuples(st.sampled_from("ABCÄ"), values), max_size=40)


@settings(deadline=None, max_examples=50)
@given(shards=st.lists(events, min_size=1, max_size=3), other=events)
def test_fit_codes_equals_pandas_on_random_shards(tmp_path_factory, shards, other, write):
    folder = tmp_path_factory.mktemp("fit")
    paths = [
        write(folder / f"{i}.parquet", [c for c, _ in rows], [v for _, v in rows])
        for i, rows in enumerate([*shards, other])
    ]
    table = fit_codes(paths[:-1], paths[-1:])
    assert table.schema.equals(CODES)
    train = pd.DataFrame([row for rows in shards for row in rows], columns=["code", "value"])
    train["value"] = train["value"].astype("float32").astype("float64")
    names = sorted({*train["code"], *(c for c, _ in other)})
    assert table["code"].to_pylist() == names
    for row in table.to_pylist():
        mine = train[train["code"] == row["code"]]
        known = mine["value"].dropna()
        assert row["count"] == len(mine)
        assert row["num_values"] == len(known)
        if len(known):
            np.testing.assert_allclose(row["mean"], known.mean(), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(row["std"], known.std(ddof=0), rtol=1e-6, atol=1e-6)
            expected = known.quantile(list(QUANTILES))
            np.testing.assert_allclose(row["quantiles"], expected, rtol=1e-6, atol=1e-6)
        else:
            assert (row["mean"], row["std"], row["quantiles"]) == (None, None, None)


def test_codes_of_other_splits_are_listed_without_statistics(tmp_path, write):
    train = write(tmp_path / "a.parquet", ["A", "A"], [1.0, 3.0])
    other = write(tmp_path / "b.parquet", ["A", "B"], [100.0, 5.0])
    a, b = fit_codes([train], [other]).to_pylist()
    assert (a["count"], a["num_values"], a["mean"], a["std"]) == (2, 2, 2.0, 1.0)
    assert (b["count"], b["num_values"], b["mean"], b["std"]) == (0, 0, None, None)
    assert b["quantiles"] is None


def test_infinite_values_are_counted_as_events_only(tmp_path, write):
    path = write(tmp_path / "a.parquet", ["A", "A", "A"], [1.0, np.inf, -np.inf])
    row = fit_codes([path]).to_pylist()[0]
    assert (row["count"], row["num_values"], row["mean"], row["std"]) == (3, 1, 1.0, 0.0)


def test_thinned_quantiles_stay_close_to_the_exact_ones(tmp_path, monkeypatch, write):
    monkeypatch.setattr(code_statistics, "QUANTILE_SAMPLE", 500)
    rng = np.random.default_rng(0)
    draws = rng.normal(size=5_200).astype(np.float32)
    halves = [write(tmp_path / f"{i}.parquet", ["A"] * 2600, draws[i::2]) for i in range(2)]
    found = fit_codes(halves).to_pylist()[0]["quantiles"]
    shares = [(draws < q).mean() for q in found]
    np.testing.assert_allclose(shares, QUANTILES, atol=0.05)


def test_a_shard_without_values_has_counts_only(tmp_path):
    pq.write_table(pa.table({"subject_id": [1, 2], "code": ["A", "A"]}), tmp_path / "a.parquet")
    row = fit_codes([tmp_path / "a.parquet"]).to_pylist()[0]
    assert (row["count"], row["num_values"]) == (2, 0)


@pytest.mark.parametrize("content", [b"not parquet at all", b""])
def test_a_corrupt_shard_is_named(tmp_path, content):
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.parquet"):
        fit_codes([tmp_path / "bad.parquet"])


def test_a_missing_shard_or_code_column_is_named(tmp_path):
    pq.write_table(pa.table({"subject_id": [1]}), tmp_path / "no_code.parquet")
    for name in ("gone", "no_code"):
        with pytest.raises(InputError, match=name):
            fit_codes([tmp_path / f"{name}.parquet"])


@pytest.mark.parametrize("rows", [2, 3, 5, 100])
def test_subjects_of_a_code_are_counted_once_wherever_a_chunk_ends(
    tmp_path, in_chunks, rows, write
):
    codes, subjects = list("AABABABCA"), [1, 1, 1, 1, 2, 2, 3, 3, 3]
    path = write(tmp_path / "a.parquet", codes, [None] * len(codes))
    table = pq.read_table(path).set_column(0, "subject_id", pa.array(subjects))
    pq.write_table(table, path)
    again = write(tmp_path / "b.parquet", ["A"], [None])  # of another subject
    with in_chunks(rows):
        fitted = fit_codes([path, again])
    assert fitted["code"].to_pylist() == ["A", "B", "C"]
    assert fitted["num_subjects"].to_pylist() == [4, 3, 1]
    assert Vocabulary.from_table(fitted).subjects.tolist() == [4, 3, 1]
    kept = Vocabulary.from_table(Vocabulary.from_table(fitted).to_table())
    assert kept.subjects.tolist() == [4, 3, 1]
    older = Vocabulary.from_table(fitted.drop_columns("num_subjects"))
    assert older.subjects.tolist() == older.count.tolist() == [6, 3, 1]


def test_a_group_alone_is_what_its_shards_are_one_after_the_other(tmp_path, write):
    rng = np.random.default_rng(0)
    counts = [
        count_shard(write(tmp_path / f"{n}.parquet", rng.choice([*"ABCD"], 300), rng.random(300)))
        for n in range(5)
    ]
    group, whole = CodeFit(), CodeFit()
    for each in counts:
        group.add(each.codes)
    whole.join(group.joined())
    assert whole.joined().equals(group.joined())


@pytest.mark.parametrize("group", [1, 2, 3])
def test_groups_have_the_statistics_of_all_and_the_same_sample(tmp_path, monkeypatch, write, group):
    monkeypatch.setattr(code_statistics, "QUANTILE_SAMPLE", 100)
    rng = np.random.default_rng(0)
    paths = [
        write(tmp_path / f"{n}.parquet", rng.choice([*"AB", f"only {n}"], 400), rng.random(400))
        for n in range(7)
    ]
    whole = fit_codes(paths)
    monkeypatch.setattr(code_statistics, "GROUP_SHARDS", group)
    found = fit_codes(paths)
    sums = ["mean", "std"]
    assert found.drop_columns(sums).equals(whole.drop_columns(sums))
    for name in sums:
        np.testing.assert_allclose(found[name].to_numpy(), whole[name].to_numpy(), rtol=1e-12)
