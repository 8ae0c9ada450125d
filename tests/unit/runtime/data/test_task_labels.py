import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.labels import read_labels
from ehr_ray.runtime.data import task_labels as module
from ehr_ray.runtime.data import tasks
from ehr_ray.runtime.data.task_labels import LabelCount, task_labels
from ehr_ray.storage.paths import local

SHARDS = {
    "train/a/0": [1, 2],
    "train/a/1": [3],
    "train/b/0": [4],
    "tuning/0": [5],
    "held_out/0": [6],
}


@pytest.fixture
def cohort(tmp_path):
    """Five shards, with labels of some of their subjects and of one who has no events."""
    root = tmp_path / "cohort"
    for name, subjects in SHARDS.items():
        path = shard(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        n = len(subjects)
        table = {"subject_id": subjects, "time": pa.nulls(n, pa.timestamp("us")), "code": ["A"] * n}
        pq.write_table(pa.table(table), path)
    (root / "labels").mkdir()
    return root


def shard(cohort, name):
    return cohort / "data" / f"{name}.parquet"


def label(cohort, task, column, rows):
    subject, answer = zip(*rows, strict=True)
    time = pa.array(range(len(rows)), pa.timestamp("us"))
    table = {"subject_id": subject, "prediction_time": time, column: answer}
    path = cohort / "labels" / f"{task}.parquet"
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path)


def read(cohort, task, cache):
    return task_labels(cohort, task, cache, on_ray=False)


def told(labels):
    return list(
        zip(
            labels.subject_id.tolist(),
            labels.prediction_time.tolist(),
            labels.value.tolist(),
            strict=True,
        )
    )


KINDS = {
    "boolean_value": [True, False, True, None, False, True],
    "float_value": [0.1, None, 2.5, 1e300, -3.0, 4.0],
    "integer_value": [1, 2, None, 4, 5, 6],
    "categorical_value": ["b", "a", " c ", "", "a", "b"],
}


@pytest.mark.parametrize("column", KINDS)
@pytest.mark.parametrize("kept", [True, False])
def test_a_shard_has_the_labels_that_the_files_have_of_its_subjects(cohort, tmp_path, column, kept):
    rows = [*zip([4, 1, 1, 5, 3, 6], KINDS[column], strict=True)]
    label(cohort, "x", column, rows)
    (tmp_path / "file").write_text("no folder")
    found = read(cohort, "x", tmp_path / ("cache" if kept else "file/cache"))
    assert (found.folder is not None) == kept
    whole = read_labels(cohort, "x")
    assert (found.kind, found.classes) == (whole.kind, whole.classes)
    assert found.unknown == whole.unknown == 1
    every = []
    for name in SHARDS:
        own = found.of(shard(cohort, name))
        assert own.value.dtype == whole.value.dtype or not len(own.value)
        assert set(own.subject_id.tolist()) <= set(SHARDS[name])
        every += told(own)
    assert sorted(every) == told(whole)


def test_what_travels_holds_no_labels_and_a_shard_reads_its_own_file_alone(cohort, tmp_path):
    label(cohort, "x", "boolean_value", [(who, True) for who in range(1, 7)])
    found = read(cohort, "x", tmp_path / "cache")
    assert len(pickle.dumps(found)) < 1000
    (cohort / "labels" / "x.parquet").unlink()
    shard(cohort, "tuning/0").unlink()
    assert told(found.of(shard(cohort, "tuning/0"))) == [(5, 4, True)]


def test_labels_of_subjects_with_events_are_counted_by_split(cohort, tmp_path):
    rows = [(1, True), (1, False), (3, True), (5, False), (9, True)]
    label(cohort, "death", "boolean_value", rows)
    assert read(cohort, "death", tmp_path / "cache").splits == {
        "train": LabelCount(3, 2),
        "tuning": LabelCount(1, 0),
        "held_out": LabelCount(0, 0),
    }


def test_a_start_beside_another_leaves_what_has_not_been_sent_yet(cohort, tmp_path, fetched_unsent):
    label(cohort, "death", "boolean_value", [(1, True)])
    found = read(cohort, "death", local(f"file://{tmp_path}/store"))
    assert found.folder is not None
    assert sorted(fetched_unsent).count("0.parquet") == 4
    assert told(found.of(shard(cohort, "train/a/0"))) == [(1, 0, True)]


def test_of_other_kinds_none_is_positive(cohort, tmp_path):
    label(cohort, "days", "float_value", [(2, 1.5), (6, 3.0)])
    found = read(cohort, "days", tmp_path / "cache").splits
    assert {split: (each.labelled, each.positive) for split, each in found.items()} == {
        "train": (1, None),
        "tuning": (0, None),
        "held_out": (1, None),
    }


def test_labels_are_divided_once_until_a_file_changes(cohort, tmp_path, monkeypatch):
    label(cohort, "death", "boolean_value", [(1, True)])
    first = read(cohort, "death", tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_jobs", None)
        assert read(cohort, "death", tmp_path / "cache") == first
    label(cohort, "death", "boolean_value", [(1, True), (4, True)])
    again = read(cohort, "death", tmp_path / "cache")
    assert again.splits["train"] == LabelCount(2, 2)
    assert told(again.of(shard(cohort, "train/b/0"))) == [(4, 1, True)]


def test_a_division_that_was_interrupted_is_made_anew(cohort, tmp_path):
    label(cohort, "death", "boolean_value", [(1, True)])
    first = read(cohort, "death", tmp_path / "cache")
    (local(first.folder) / module.FOUND).unlink()
    (local(first.folder) / "train" / "a" / "0.parquet").write_bytes(b"cut short")
    assert read(cohort, "death", tmp_path / "cache") == first
    assert told(first.of(shard(cohort, "train/a/0"))) == [(1, 0, True)]


@pytest.mark.parametrize("content", ["{", "[]", '{"kind": "binary"}'])
def test_a_damaged_note_of_what_was_found_is_made_anew(cohort, tmp_path, content):
    label(cohort, "death", "boolean_value", [(1, True)])
    first = read(cohort, "death", tmp_path / "cache")
    note = local(first.folder) / module.FOUND
    whole = note.read_text()
    note.write_text(content)
    assert read(cohort, "death", tmp_path / "cache") == first
    assert note.read_text() == whole


def test_a_file_that_is_gone_is_told_with_the_remedy(cohort, tmp_path):
    label(cohort, "death", "boolean_value", [(1, True)])
    found = read(cohort, "death", tmp_path / "cache")
    (local(found.folder) / "train" / "a" / "0.parquet").unlink()
    with pytest.raises(InputError, match=r"train/a/0.parquet: no such file; remove its folder"):
        found.of(shard(cohort, "train/a/0"))


def test_shards_are_divided_by_jobs_of_several_that_can_travel(cohort, tmp_path, monkeypatch):
    label(cohort, "death", "boolean_value", [(1, True), (4, False)])
    ran = []

    def run_jobs(function, jobs, **options):
        ran.append(([len(shards) for shards in jobs], options["on_ray"]))
        there = pickle.loads(pickle.dumps(function))
        return tasks.run_jobs(there, jobs, **dict(options, on_ray=False))

    monkeypatch.setattr(module, "run_jobs", run_jobs)
    monkeypatch.setattr(module, "RANGE_IDS", 2)
    found = task_labels(cohort, "death", tmp_path / "cache", on_ray=False)
    assert ran == [([2, 2, 1], False)]
    assert found.splits["train"] == LabelCount(2, 1)


@pytest.mark.parametrize(("limit", "on_ray"), [(1, True), (100, False)])
def test_few_labels_are_divided_by_the_process_itself(cohort, tmp_path, monkeypatch, limit, on_ray):
    label(cohort, "death", "boolean_value", [(1, True), (4, False)])
    asked = []

    def run_jobs(function, jobs, **options):
        asked.append(options["on_ray"])
        return tasks.run_jobs(function, jobs, **dict(options, on_ray=False))

    monkeypatch.setattr(module, "run_jobs", run_jobs)
    monkeypatch.setattr(module, "HERE_ROWS", limit)
    task_labels(cohort, "death", tmp_path / "cache", on_ray=True)
    assert asked == [on_ray]


def test_answers_of_two_columns_in_labels_of_two_jobs_are_refused(cohort, tmp_path, monkeypatch):
    """Neither job sees both."""
    keys = {"subject_id": [1, 6], "prediction_time": pa.array([0, 0], pa.timestamp("us"))}
    answers = {"float_value": [0.5, None], "integer_value": [None, 3]}
    pq.write_table(pa.table({**keys, **answers}), cohort / "labels" / "x.parquet")
    with pytest.raises(InputError, match=r"answers in several columns: float_value of .*integer"):
        read(cohort, "x", tmp_path / "cache")


def test_the_kind_is_told_where_no_subject_with_events_has_a_label(cohort, tmp_path):
    label(cohort, "days", "float_value", [(9, 1.5)])
    found = read(cohort, "days", tmp_path / "cache")
    assert found.kind == "regression"
    assert not len(found.of(shard(cohort, "train/a/0")).subject_id)


def test_classes_have_the_places_that_a_model_knows(cohort, tmp_path):
    label(cohort, "x", "categorical_value", [(1, "b"), (3, "a")])
    found = read(cohort, "x", tmp_path / "cache")
    known = found.trained("classes", ["c", "b", "a"])
    values = [known.of(shard(cohort, f"train/a/{n}")).value.tolist() for n in (0, 1)]
    assert values == [[1], [2]]
    with pytest.raises(InputError, match=r"label 'a' is none of task.classes \(b\)"):
        found.trained("classes", ["b"])
    with pytest.raises(InputError, match=r"'task.classes=\[\"a\", \"b\"\]'"):
        found.trained("binary", [])


def test_a_store_has_what_was_divided_and_another_machine_reads_a_shard_alone(
    cohort, tmp_path, monkeypatch
):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "one"))
    label(cohort, "x", "boolean_value", [(1, True), (6, False)])
    uri = f"file://{tmp_path}/store"
    found = read(cohort, "x", local(uri))
    assert found.folder.startswith(uri)
    shutil.rmtree(tmp_path / "one")
    monkeypatch.setattr(module, "run_jobs", None)  # all of it is there
    assert read(cohort, "x", local(uri)) == found
    assert told(found.of(shard(cohort, "held_out/0"))) == [(6, 1, False)]
    copies = {path.name for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert {module.FOUND, "0.parquet"} <= copies
    assert not any("train" in str(path) for path in (tmp_path / "one").rglob("*.parquet"))


def test_a_job_reads_the_ids_of_shards_in_a_store_and_copies_none(cohort, tmp_path, monkeypatch):
    monkeypatch.setenv("EHR_RAY_STAGING", str(tmp_path / "one"))
    label(cohort, "x", "boolean_value", [(1, True), (6, False)])
    uri = f"file://{cohort}"
    shards = [f"{uri}/data/{name}.parquet" for name in SHARDS]
    job = module.DivideLabels("x", uri, (f"{uri}/labels/x.parquet",), f"file://{tmp_path}/store")
    found = job(shards)
    assert found.labelled == [1, 0, 0, 0, 1]
    made = {path.name for path in (tmp_path / "store" / "train").rglob("*.parquet")}
    assert made == {"0.parquet", "1.parquet"}
    assert not [path for path in local(uri).rglob("data/**/*") if path.is_file()]
    shard(cohort, "tuning/0").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"tuning/0.parquet: unreadable, damaged or cut short"):
        job(shards)


def test_two_labels_at_one_time_and_a_task_without_labels_are_refused(cohort, tmp_path):
    with pytest.raises(InputError, match="no labels for task 'death'"):
        read(cohort, "death", tmp_path)
    keys = {"subject_id": [1, 1], "prediction_time": pa.array([0, 0], pa.timestamp("us"))}
    pq.write_table(
        pa.table({**keys, "boolean_value": [True, False]}), cohort / "labels" / "death.parquet"
    )
    with pytest.raises(InputError, match="two labels of one subject at one prediction time"):
        read(cohort, "death", tmp_path)


def test_many_labels_of_a_subject_make_more_jobs(cohort, tmp_path, monkeypatch):
    """A job holds labels, and so many of them that its memory is bounded."""
    label(cohort, "x", "boolean_value", [(who, True) for who in np.repeat(np.arange(1, 7), 4)])
    monkeypatch.setattr(module, "RANGE_IDS", 6)
    monkeypatch.setattr(module, "LABELS_A_SUBJECT", 1)
    jobs = []

    def run_jobs(function, given, **options):
        jobs.extend(given)
        return tasks.run_jobs(function, given, **options)

    monkeypatch.setattr(module, "run_jobs", run_jobs)
    assert read(cohort, "x", tmp_path / "cache").splits["train"] == LabelCount(16, 16)
    assert len(jobs) == 3
