import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.patients import splits_of
from ehr_ray.sources import dataset_check
from ehr_ray.sources.dataset_check import check_dataset, is_ours
from ehr_ray.storage import sync

FOLDERS = {"train": [1, 2, 3], "tuning": [4], "held_out": [5]}


def write(root, folders=FOLDERS, splits=FOLDERS):
    """Write a dataset of others: {split or split/n: subjects}, and its table of splits."""
    for name, ids in folders.items():
        path = root / "data" / (name if "/" in name else f"{name}/0")
        path.parent.mkdir(parents=True, exist_ok=True)
        table = {
            "subject_id": pa.array(ids, pa.int64()),
            "time": pa.array([0] * len(ids), pa.timestamp("us")),
            "code": ["A"] * len(ids),
        }
        pq.write_table(pa.table(table), path.with_suffix(".parquet"))
    if splits is not None:
        (root / "metadata").mkdir(exist_ok=True)
        rows = [(i, split) for split, ids in splits.items() for i in ids]
        table = {"subject_id": [i for i, _ in rows], "split": [s for _, s in rows]}
        pq.write_table(pa.table(table), root / "metadata/subject_splits.parquet")
    return root


@pytest.fixture(params=[10**9, 1], ids=["one range", "several"])
def check(request, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(dataset_check, "RANGE_IDS", request.param)

    def run(root):
        folder = tmp_path_factory.mktemp("check") / "ids"
        return check_dataset(root, splits_of(root), folder)

    return run


def test_a_dataset_whose_folders_and_table_agree_is_taken_without_a_word(tmp_path, check):
    assert check(write(tmp_path / "a")) == []
    assert check(write(tmp_path / "b", splits=None)) == []


def test_a_dataset_in_a_store_is_checked_where_it_lies(tmp_path, check, monkeypatch):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "copies"))
    root = sync.fetch_cohort(f"file://{write(tmp_path / 'store')}")
    assert check(root) == []
    assert [*root.glob("data/**/*.parquet")] == []


def test_folders_that_are_not_what_the_table_says_are_refused(tmp_path, check):
    root = write(tmp_path, splits={"train": [1, 4], "tuning": [2], "held_out": [3, 5]})
    with pytest.raises(InputError, match=r"subject_splits\.parquet: 3 subjects have another split"):
        check(root)


@pytest.mark.parametrize("other", ["train/1", "held_out/1"])
def test_a_subject_in_two_shards_is_refused(tmp_path, other, check):
    root = write(tmp_path, folders={**FOLDERS, other: [2, 9]}, splits=None)
    with pytest.raises(InputError, match=rf"1 subjects .* data/{other}\.parquet") as error:
        check(root)
    assert "data/train/0.parquet" in str(error.value)


def test_a_subject_with_two_splits_in_the_table_is_refused(tmp_path, check):
    root = write(tmp_path, splits={**FOLDERS, "test": [1]})
    with pytest.raises(InputError, match=r"1 subjects are in more than one split"):
        check(root)


def test_subjects_without_a_split_are_told(tmp_path, check):
    (line,) = check(write(tmp_path, splits={"train": [1], "tuning": [4]}))
    assert line.startswith("3 of 5 subjects have no row in ")
    assert line.endswith("subject_splits.parquet: the folder they lie in decides")


def test_of_several_subjects_in_two_shards_the_first_is_named(tmp_path, check):
    folders = {"train": range(1, 40), "tuning": [30, 41], "held_out": [20, 38, 50]}
    root = write(tmp_path, folders={k: list(v) for k, v in folders.items()}, splits=None)
    with pytest.raises(InputError, match=r"3 subjects .* data/train/0.* data/held_out/0"):
        check(root)


def test_what_ingest_wrote_needs_no_check_until_something_is_added(synthetic_cohort, tmp_path):
    shards = splits_of(synthetic_cohort)
    assert is_ours(synthetic_cohort, shards)
    assert not is_ours(synthetic_cohort, {**shards, "tuning": [tmp_path / "99.parquet"]})
    assert not is_ours(write(tmp_path), splits_of(tmp_path))


def test_what_ingest_wrote_is_no_more_when_a_shard_is_replaced(synthetic_cohort, tmp_path):
    cohort = tmp_path / "cohort"
    shutil.copytree(synthetic_cohort, cohort)
    assert is_ours(cohort, splits_of(cohort))
    shutil.rmtree(cohort / "data" / "held_out")
    assert is_ours(cohort, splits_of(cohort))
    shutil.copy(cohort / "data/tuning/0.parquet", cohort / "data/train/0.parquet")
    assert not is_ours(cohort, splits_of(cohort))


def test_shards_with_and_without_a_zone_are_refused(tmp_path, check):
    root = write(tmp_path)
    path = root / "data/tuning/0.parquet"
    table = pq.read_table(path)
    aware = table["time"].cast(pa.timestamp("us", "UTC"))
    pq.write_table(table.set_column(1, "time", aware), path)
    with pytest.raises(InputError, match=r"tuning/0\.parquet: times with a zone, but none in .*0"):
        check(root)
