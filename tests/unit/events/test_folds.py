import numpy as np
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.folds import folds_of, read_events, write_fold


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
    events = read_events(synthetic_cohort)
    subjects = np.unique(events["subject_id"].to_numpy())
    splits = {"train": subjects[:20], "tuning": subjects[20:30], "held_out": subjects[30:]}
    folder = write_fold(synthetic_cohort, events, splits, tmp_path / "fold")
    for split, wanted in splits.items():
        found = pq.read_table(folder / "data" / split / "0.parquet")
        assert np.unique(found["subject_id"].to_numpy()).tolist() == wanted.tolist()
    codes = pq.read_table(folder / "metadata" / "codes.parquet").to_pandas().set_index("code")
    train = pq.read_table(folder / "data" / "train" / "0.parquet").to_pandas()
    heart = train[train["code"] == "HR"]["numeric_value"].astype(float)
    assert codes.loc["HR", "mean"] == pytest.approx(heart.mean(), rel=1e-6)
    assert codes.loc["HR", "description"] == "Heart rate (bpm)"
    assert (folder / "labels" / "outcome.parquet").is_file()
