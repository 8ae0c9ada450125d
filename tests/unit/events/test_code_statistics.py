import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.events import code_statistics
from ehr_ray.events.code_counts import count_shard
from ehr_ray.events.code_statistics import CodeFit, fit_codes
from ehr_ray.events.vocabulary import CODES, QUANTILES

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
