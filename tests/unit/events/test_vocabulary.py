import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.events import vocabulary
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.vocabulary import QUANTILES, Vocabulary

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
def test_a_vocabulary_remembers_how_it_scales(scaling, tmp_path, write):
    path = write(tmp_path / "a.parquet", ["A"] * 5, [1.0, 2.0, 3.0, 4.0, 1000.0])
    found = Vocabulary.from_table(fit_codes([path]), scaling=scaling)
    table = found.to_table()
    pq.write_table(table, tmp_path / "v.parquet")
    again = pq.read_table(tmp_path / "v.parquet")
    assert vocabulary.scaling_of(again) == scaling
    assert vocabulary.scaling_of(fit_codes([path])) is None
    assert found.location.tolist() == [3.0 if scaling == "robust" else 202.0]
    assert (found.scale[0] < 2) == (scaling == "robust")


def test_quantiles_and_descriptions_survive_a_round_trip(tmp_path, write):
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
