import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.folds import folds_of, write_fold
from ehr_ray.events.patients import splits_of


def test_folds_spread_every_stratum_and_repeat_with_their_seed():
    strata = np.repeat([0, 1, 2], [50, 25, 2])
    fold = folds_of(strata, 5, seed=1)
    counts = np.array([np.bincount(fold[strata == s], minlength=5) for s in (0, 1)])
    assert counts.tolist() == [[10] * 5, [5] * 5]
    np.testing.assert_array_equal(fold, folds_of(strata, 5, seed=1))
    assert not np.array_equal(fold, folds_of(strata, 5, seed=2))
    with pytest.raises(InputError, match="only 3 subjects"):
        folds_of(np.zeros(3, int), 5, seed=0)


def test_a_fold_is_a_cohort_with_statistics_of_its_own_train(synthetic_cohort, tmp_path):
    shards = [path for paths in splits_of(synthetic_cohort).values() for path in paths]
    events = pa.concat_tables([pq.read_table(path) for path in shards])
    subjects = np.unique(events["subject_id"].to_numpy())
    splits = {"train": subjects[:20], "tuning": subjects[20:30], "held_out": subjects[30:]}
    folder = write_fold(synthetic_cohort, splits, tmp_path / "fold")
    for split, wanted in splits.items():
        found = pq.read_table(folder / "data" / split / "0.parquet")
        rows = np.isin(events["subject_id"].to_numpy(), wanted)
        assert found.equals(events.filter(pa.array(rows)))
    codes = pq.read_table(folder / "metadata" / "codes.parquet").to_pandas().set_index("code")
    train = pq.read_table(folder / "data" / "train" / "0.parquet").to_pandas()
    heart = train[train["code"] == "HR"]["numeric_value"].astype(float)
    assert codes.loc["HR", "mean"] == pytest.approx(heart.mean(), rel=1e-6)
    assert codes.loc["HR", "description"] == "Heart rate (bpm)"
    assert (folder / "labels" / "outcome.parquet").is_file()


def test_a_fold_of_shards_with_other_columns_has_all_of_them(tmp_path):
    """Shards of others may lack numbers, or have a column more."""
    data = tmp_path / "cohort" / "data" / "train"
    data.mkdir(parents=True)
    time = pa.array([0, 60], pa.timestamp("us"))
    plain = {"subject_id": pa.array([1, 2]), "time": time, "code": ["A", "B"]}
    pq.write_table(pa.table(plain), data / "0.parquet")
    more = plain | {"subject_id": pa.array([3, 4]), "numeric_value": [1.0, 2.0], "unit": ["m", "m"]}
    pq.write_table(pa.table(more), data / "1.parquet")
    splits = {"train": np.array([2, 3]), "tuning": np.array([1]), "held_out": np.array([4])}
    folder = write_fold(tmp_path / "cohort", splits, tmp_path / "fold")
    rows = pq.read_table(folder / "data" / "train" / "0.parquet").to_pylist()
    assert [row["subject_id"] for row in rows] == [2, 3]
    assert [row["numeric_value"] for row in rows] == [None, 1.0]
    assert [row["unit"] for row in rows] == [None, "m"]
