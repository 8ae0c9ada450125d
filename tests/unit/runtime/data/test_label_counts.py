import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.runtime.data import label_counts, tasks
from ehr_ray.runtime.data.label_counts import LabelCount, count_labels


@pytest.fixture
def cohort(tmp_path):
    """Five shards, with labels of some of their subjects and of one who has no events."""
    root = tmp_path / "cohort"
    ids = {
        "train/a/0": [1, 2],
        "train/a/1": [3],
        "train/b/0": [4],
        "tuning/0": [5],
        "held_out/0": [6],
    }
    for name, subjects in ids.items():
        path = root / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        n = len(subjects)
        table = {"subject_id": subjects, "time": pa.nulls(n, pa.timestamp("us")), "code": ["A"] * n}
        pq.write_table(pa.table(table), path)
    (root / "labels").mkdir()
    return root


def label(cohort, task, column, rows):
    subject, answer = zip(*rows, strict=True)
    time = pa.array(range(len(rows)), pa.timestamp("us"))
    table = {"subject_id": subject, "prediction_time": time, column: answer}
    pq.write_table(pa.table(table), cohort / "labels" / f"{task}.parquet")


def test_labels_of_subjects_with_events_are_counted_by_split(cohort, tmp_path):
    label(
        cohort, "death", "boolean_value", [(1, True), (1, False), (3, True), (5, False), (9, True)]
    )
    found = count_labels(cohort, "death", tmp_path / "cache", 6, on_ray=False)
    assert found == {
        "train": LabelCount(3, 2),
        "tuning": LabelCount(1, 0),
        "held_out": LabelCount(0, 0),
    }


def test_of_other_kinds_none_is_positive(cohort, tmp_path):
    label(cohort, "days", "float_value", [(2, 1.5), (6, 3.0)])
    found = count_labels(cohort, "days", tmp_path / "cache", 6, on_ray=False)
    assert {split: (each.labelled, each.positive) for split, each in found.items()} == {
        "train": (1, None),
        "tuning": (0, None),
        "held_out": (1, None),
    }


def test_counts_are_kept_until_a_file_changes(cohort, tmp_path, monkeypatch):
    label(cohort, "death", "boolean_value", [(1, True)])
    first = count_labels(cohort, "death", tmp_path / "cache", 6, on_ray=False)
    with monkeypatch.context() as patch:
        patch.setattr(label_counts, "run_jobs", None)
        assert count_labels(cohort, "death", tmp_path / "cache", 6, on_ray=False) == first
    label(cohort, "death", "boolean_value", [(1, True), (4, True)])
    again = count_labels(cohort, "death", tmp_path / "cache", 6, on_ray=False)
    assert again["train"] == LabelCount(2, 2)


def test_where_nothing_can_be_kept_they_are_counted_each_time(cohort, tmp_path):
    label(cohort, "death", "boolean_value", [(1, True)])
    (tmp_path / "file").write_text("no folder")
    for _ in range(2):
        found = count_labels(cohort, "death", tmp_path / "file" / "cache", 6, on_ray=False)
        assert found["train"] == LabelCount(1, 1)


def test_shards_are_counted_by_jobs_of_several_that_can_travel(cohort, tmp_path, monkeypatch):
    label(cohort, "death", "boolean_value", [(1, True), (4, False)])
    ran = []

    def run_jobs(function, jobs, **options):
        ran.append(([len(shards) for _, shards in jobs], options["on_ray"]))
        there = pickle.loads(pickle.dumps(function))
        return tasks.run_jobs(there, jobs, **dict(options, on_ray=False))

    monkeypatch.setattr(label_counts, "run_jobs", run_jobs)
    monkeypatch.setattr(label_counts, "RANGE_IDS", 2)
    found = count_labels(cohort, "death", tmp_path / "cache", 6, on_ray=True)
    assert ran == [([2, 1, 1, 1], True)]
    assert found["train"] == LabelCount(2, 1)


def test_a_task_without_labels_is_refused(cohort, tmp_path):
    with pytest.raises(InputError, match="no labels for task 'death'"):
        count_labels(cohort, "death", tmp_path, 6, on_ray=False)
