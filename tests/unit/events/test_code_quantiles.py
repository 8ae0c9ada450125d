import numpy as np
import pyarrow as pa

from ehr_ray.events import code_statistics
from ehr_ray.events.code_quantiles import FOUND, SEEN, STRIDES, quantiles_of, sample_values, summed
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.vocabulary import QUANTILES


def test_thinned_quantiles_stay_close_to_the_exact_ones(tmp_path, monkeypatch, write):
    monkeypatch.setattr(code_statistics, "QUANTILE_SAMPLE", 500)
    rng = np.random.default_rng(0)
    draws = rng.normal(size=5_200).astype(np.float32)
    halves = [write(tmp_path / f"{i}.parquet", ["A"] * 2600, draws[i::2]) for i in range(2)]
    found = fit_codes(halves).to_pylist()[0]["quantiles"]
    shares = [(draws < q).mean() for q in found]
    np.testing.assert_allclose(shares, QUANTILES, atol=0.05)


def test_every_so_many_values_of_a_code_one_is_kept_through_all_shards(tmp_path, write):
    """Of A, 2 of which came before, the values at 2, 3, 4, 5 among all; of each 3 the first."""
    values = [20.0, None, 30.0, 1.0, 40.0, 50.0]
    path = write(tmp_path / "a.parquet", list("AAABAA"), values)
    seen = pa.table([["A", "B"], [2, 0]], schema=SEEN)
    strides = pa.table([["B", "A"], [1, 3]], schema=STRIDES)
    assert sample_values(path, seen, strides).to_pylist() == [
        {"code": "A", "values": [30.0]},
        {"code": "B", "values": [1.0]},
    ]
    assert len(sample_values(path, SEEN.empty_table(), strides)) == 0


def test_values_before_a_shard_are_those_of_its_group_and_of_groups_before():
    seen = pa.table([["A", "B", "C"], [1, 2, 3]], schema=SEEN)
    before = pa.table([["C", "D", "A"], [10, 20, 30]], schema=SEEN)
    assert summed(seen, before)["num_values"].to_pylist() == [31, 2, 13]


def test_quantiles_are_of_all_samples_of_a_code():
    samples = [pa.table({"code": ["B"], "values": pa.array([[3.0]], pa.list_(pa.float32()))})]
    more = pa.array([[1.0, 2.0], [7.0]], pa.list_(pa.float32()))
    samples.append(pa.table({"code": ["B", "A"], "values": more}))
    found = quantiles_of(samples)
    assert found.schema.equals(FOUND)
    quantiles = dict(zip(*found.to_pydict().values(), strict=True))
    np.testing.assert_allclose(quantiles["B"], np.quantile([1.0, 2.0, 3.0], QUANTILES))
    assert set(quantiles["A"]) == {7.0}
    assert len(quantiles_of([])) == 0
