import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.events import vocabulary
from ehr_ray.events.schema import EVENTS
from ehr_ray.events.vocabulary import CODES, QUANTILES, Vocabulary, fit_codes


def write(path, codes, values):
    count = len(codes)
    columns = {"subject_id": np.arange(count), "time": np.zeros(count, "datetime64[us]")}
    columns |= {
        "code": pa.array(codes, pa.string()),
        "numeric_value": pa.array(values, pa.float32()),
    }
    pq.write_table(pa.table(columns, schema=EVENTS), path, row_group_size=7)
    return path


values = st.one_of(st.none(), st.floats(-1e4, 1e4, width=32), st.just(float("nan")))
events = st.lists(st.tuples(st.sampled_from("ABCÄ"), values), max_size=40)


@settings(deadline=None, max_examples=50)
@given(st.lists(events, min_size=1, max_size=3), events)
def test_fit_codes_equals_pandas_on_random_shards(tmp_path_factory, shards, other):
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


def test_codes_of_other_splits_are_listed_without_statistics(tmp_path):
    train = write(tmp_path / "a.parquet", ["A", "A"], [1.0, 3.0])
    other = write(tmp_path / "b.parquet", ["A", "B"], [100.0, 5.0])
    a, b = fit_codes([train], [other]).to_pylist()
    assert (a["count"], a["num_values"], a["mean"], a["std"]) == (2, 2, 2.0, 1.0)
    assert (b["count"], b["num_values"], b["mean"], b["std"]) == (0, 0, None, None)
    assert b["quantiles"] is None


def test_infinite_values_are_counted_as_events_only(tmp_path):
    path = write(tmp_path / "a.parquet", ["A", "A", "A"], [1.0, np.inf, -np.inf])
    row = fit_codes([path]).to_pylist()[0]
    assert (row["count"], row["num_values"], row["mean"], row["std"]) == (3, 1, 1.0, 0.0)


def test_thinned_quantiles_stay_close_to_the_exact_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(vocabulary, "QUANTILE_SAMPLE", 500)
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


TABLE = pa.table(
    {
        "code": ["C", "A", "B", "Z"],
        "count": pa.array([5, 3, 1, None], pa.int64()),
        "mean": pa.array([2.0, None, 1.0, None], pa.float64()),
        "std": pa.array([4.0, None, 0.0, None], pa.float64()),
    }
)


def test_codes_are_ascending_and_unknown_statistics_neutral():
    found = Vocabulary.from_table(TABLE)
    assert found.codes == ("A", "B", "C", "Z")
    assert found.count.tolist() == [3, 1, 5, 0]
    assert found.mean.tolist() == [0.0, 1.0, 2.0, 0.0]
    assert found.std.tolist() == [1.0, 1.0, 4.0, 1.0]


def test_rare_codes_are_left_out_and_encoded_as_unknown():
    found = Vocabulary.from_table(TABLE, min_count=3)
    assert found.codes == ("A", "C")
    assert found.encode(["C", "B", "A", "nope"]).tolist() == [1, -1, 0, -1]


def test_a_vocabulary_survives_its_table():
    found = Vocabulary.from_table(TABLE)
    again = Vocabulary.from_table(found.to_table())
    assert again.codes == found.codes
    for name in ("count", "mean", "std"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


@pytest.mark.parametrize("scaling", ["robust", "standard"])
def test_a_vocabulary_remembers_how_it_scales(scaling, tmp_path):
    path = write(tmp_path / "a.parquet", ["A"] * 5, [1.0, 2.0, 3.0, 4.0, 1000.0])
    found = Vocabulary.from_table(fit_codes([path]), scaling=scaling)
    table = found.to_table()
    pq.write_table(table, tmp_path / "v.parquet")
    again = pq.read_table(tmp_path / "v.parquet")
    assert vocabulary.scaling_of(again) == scaling
    assert vocabulary.scaling_of(fit_codes([path])) is None
    assert found.location.tolist() == [3.0 if scaling == "robust" else 202.0]
    assert (found.scale[0] < 2) == (scaling == "robust")


def test_quantiles_and_descriptions_survive_a_round_trip(tmp_path):
    table = fit_codes([write(tmp_path / "a.parquet", ["A", "A", "B"], [1.0, 3.0, None])])
    table = table.set_column(1, "description", pa.array(["Albumin (g/dL)", None], pa.string()))
    first = Vocabulary.from_table(table)
    again = Vocabulary.from_table(first.to_table())
    assert again.descriptions == first.descriptions == ("Albumin (g/dL)", "")
    np.testing.assert_array_equal(again.quantiles, first.quantiles)
    np.testing.assert_allclose(first.quantiles[0], 1 + 2 * np.array(QUANTILES))
    assert np.isnan(first.quantiles[1]).all()


def test_a_table_without_quantiles_takes_those_of_a_normal_distribution():
    table = pa.table(
        {"code": ["A", "B"], "count": [2, 2], "mean": [10.0, None], "std": [2.0, None]}
    )
    quantiles = Vocabulary.from_table(table).quantiles
    assert quantiles[0, 3] == 10
    np.testing.assert_allclose(quantiles[0, [1, 5]], [10 - 3.29, 10 + 3.29])
    assert np.isnan(quantiles[1]).all()


@pytest.mark.parametrize("rows", [2, 3, 5, 100])
def test_subjects_of_a_code_are_counted_once_wherever_a_chunk_ends(tmp_path, monkeypatch, rows):
    read = vocabulary.files.open_parquet

    class InChunks:
        def __init__(self, path):
            self._file = read(path)
            self.schema_arrow = self._file.schema_arrow

        def iter_batches(self, _, columns):
            return self._file.iter_batches(rows, columns=columns)

    monkeypatch.setattr(vocabulary.files, "open_parquet", InChunks)
    codes, subjects = list("AABABABCA"), [1, 1, 1, 1, 2, 2, 3, 3, 3]
    path = write(tmp_path / "a.parquet", codes, [None] * len(codes))
    table = pq.read_table(path).set_column(0, "subject_id", pa.array(subjects))
    pq.write_table(table, path)
    again = write(tmp_path / "b.parquet", ["A"], [None])  # of another subject
    fitted = fit_codes([path, again])
    assert fitted["code"].to_pylist() == ["A", "B", "C"]
    assert fitted["num_subjects"].to_pylist() == [4, 3, 1]
    assert Vocabulary.from_table(fitted).subjects.tolist() == [4, 3, 1]
    kept = Vocabulary.from_table(Vocabulary.from_table(fitted).to_table())
    assert kept.subjects.tolist() == [4, 3, 1]
    older = Vocabulary.from_table(fitted.drop_columns("num_subjects"))
    assert older.subjects.tolist() == older.count.tolist() == [6, 3, 1]
