import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.errors import InputError
from ehr_ray.events import labels as labels_module
from ehr_ray.events.labels import (
    Labels,
    choose_task,
    label_files,
    read_label_files,
    read_labels,
    task_files,
    task_name,
    tasks_of,
)


@pytest.fixture
def cohort(tmp_path):
    """A cohort with label files: cohort({task: [(subject, minute, answer), ...]})."""

    def write(tasks):
        (tmp_path / "labels").mkdir(exist_ok=True)
        for task, rows in tasks.items():
            subject, minute, answer = zip(*rows, strict=True)
            epoch = datetime.datetime(1970, 1, 1)
            times = [epoch + datetime.timedelta(minutes=m) for m in minute]
            table = pa.table(
                {
                    "subject_id": pa.array(subject, pa.int64()),
                    "prediction_time": pa.array(times, pa.timestamp("us")),
                    "boolean_value": pa.array(answer, pa.bool_()),
                }
            )
            pq.write_table(table, tmp_path / "labels" / f"{task}.parquet")
        return tmp_path

    return write


ROW = [(1, 5, True)]


def test_labels_are_sorted_and_unanswered_ones_left_out(cohort):
    rows = [(2, 9, True), (1, 7, False), (1, 5, True), (3, 1, None)]
    labels = read_labels(cohort({"death": rows}), "death")
    assert labels.task == "death"
    assert labels.subject_id.tolist() == [1, 1, 2]
    assert labels.prediction_time.tolist() == [300_000_000, 420_000_000, 540_000_000]
    assert labels.value.tolist() == [True, False, True]
    assert (labels.unknown, labels.repeated) == (1, 0)
    assert labels.of(1) == [(300_000_000, True), (420_000_000, False)]
    assert labels.of(7) == []
    assert labels.cuts() == {1: [300_000_000, 420_000_000], 2: [540_000_000]}


def test_look_up_answers_by_subject_and_time(cohort):
    labels = read_labels(cohort({"death": [(1, 7, False), (1, 5, True)]}), "death")
    order = [1, 0]
    found = labels.look_up(labels.subject_id[order], labels.prediction_time[order])
    assert found.tolist() == [False, True]
    with pytest.raises(InputError, match="1 of 1 rows have no label"):
        labels.look_up(labels.subject_id[:1] + 1, labels.prediction_time[:1])


def test_labels_of_some_subjects_are_those_of_all(cohort, monkeypatch):
    monkeypatch.setattr(labels_module, "_BATCH_ROWS", 3)
    rows = [(9 - i // 2, 7 * (i % 2), i % 3 == 0 if i % 5 else None) for i in range(16)]
    folder = cohort({"death": rows})
    every, paths = read_labels(folder, "death"), label_files(folder)["death"]
    for subjects in ([], [1, 4, 8], [100], list(range(20))):
        found = read_label_files("death", paths, np.array(subjects, np.int64))
        kept = np.isin(every.subject_id, subjects)
        for name in ("subject_id", "prediction_time", "value"):
            assert getattr(found, name).tolist() == getattr(every, name)[kept].tolist()
        assert found.unknown == sum(s in subjects and a is None for s, _, a in rows)


@pytest.mark.parametrize("some", [None, [1, 2, 3, 4]])
def test_a_row_is_named_by_its_place_in_the_file(tmp_path, monkeypatch, some):
    monkeypatch.setattr(labels_module, "_BATCH_ROWS", 2)
    table = {
        "subject_id": [9, 8, 1, 2],
        "prediction_time": pa.array([5] * 4, pa.timestamp("us")),
        "boolean_value": ["0", "1", "1", "sick"],
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    subjects = None if some is None else np.array(some)
    with pytest.raises(InputError, match="row 4, column boolean_value: 'sick'"):
        read_label_files("a", [tmp_path / "a.parquet"], subjects)
    table["prediction_time"] = pa.array([5, 5, None, 5], pa.timestamp("us"))
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="row 3: no prediction_time"):
        read_label_files("a", [tmp_path / "a.parquet"], subjects)


@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=30, unique=True),
    asked=st.lists(st.tuples(st.integers(-1, 6), st.integers(-1, 6)), max_size=20),
)
def test_every_label_is_found_and_no_other(rows, asked):
    subject, time = np.array(sorted(rows), np.int64).reshape(-1, 2).T
    labels = Labels("x", subject, time, np.arange(len(subject)), kind="regression")
    answers = {row: number for number, row in enumerate(sorted(rows))}
    wanted = np.array(asked, np.int64).reshape(-1, 2).T
    missing = sum(pair not in answers for pair in asked)
    if missing:
        with pytest.raises(InputError, match=f"{missing} of {len(asked)} rows have no label"):
            labels.look_up(*wanted)
    else:
        assert labels.look_up(*wanted).tolist() == [answers[pair] for pair in asked]


def test_two_labels_at_one_time_are_refused(cohort):
    with pytest.raises(InputError, match=r"death\.parquet: two labels of one subject .* 1 times"):
        read_labels(cohort({"death": [(4, 5, True), (1, 5, True), (4, 5, False)]}), "death")


def test_unreadable_and_incomplete_label_files_are_named(cohort):
    folder = cohort({"death": ROW}) / "labels"
    (folder / "bad.parquet").write_bytes(b"no")
    pq.write_table(pa.table({"subject_id": [1]}), folder / "half.parquet")
    for task in ("bad", "half", "gone"):
        with pytest.raises(InputError, match=task):
            read_labels(folder.parent, task)


def test_the_wanted_task_then_mortality_then_the_first_is_chosen(cohort):
    path = cohort({"stay": ROW, "death": ROW})
    assert tasks_of(path) == ["death", "stay"]
    assert choose_task(path, "stay") == "stay"
    assert choose_task(path, None) == "death"
    assert choose_task(cohort({"mortality": ROW}), None) == "mortality"


def test_a_task_without_labels_is_refused_with_those_there_are(cohort, tmp_path):
    with pytest.raises(InputError, match="no labels for task 'x'; it has death"):
        choose_task(cohort({"death": ROW}), "x")
    assert choose_task(tmp_path / "other", None) is None
    with pytest.raises(InputError, match="none; --task none evaluates"):
        choose_task(tmp_path / "other", "x")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("mortality", "mortality"),
        ("mortality/train/0", "mortality"),
        ("mortality/in_icu/first_24h/held_out/12", "mortality-in_icu-first_24h"),
        ("in-hospital/mortality", "in-hospital-mortality"),
        ("los/0", "los"),
        ("los/tuning", "los"),
        ("los/train/a/part-0", "los-a"),
        ("readmission_30", "readmission_30"),
        ("train/0", "label"),
    ],
)
def test_a_task_is_named_by_its_folders_without_split_and_shard(path, name):
    assert task_name(path.split("/")) == name


def sharded(folder, answers):
    """Write {path below labels/: [(subject, answer), ...]}, all at one time."""
    for path, rows in answers.items():
        file = folder / "labels" / f"{path}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        table = {
            "subject_id": pa.array([s for s, _ in rows], pa.int64()),
            "prediction_time": pa.array([5] * len(rows), pa.timestamp("us")),
            "boolean_value": [a for _, a in rows],
        }
        pq.write_table(pa.table(table), file)
    return folder


def test_the_shards_of_a_task_are_one_task(tmp_path):
    files = {"a/b/train/0": [(2, True)], "a/b/train/1": [(1, False)], "a/b/held_out/0": [(3, True)]}
    assert tasks_of(sharded(tmp_path, files)) == ["a-b"]
    assert choose_task(tmp_path, "a/b") == "a-b"
    labels = read_labels(tmp_path, "a/b")
    assert (labels.subject_id.tolist(), labels.value.tolist()) == ([1, 2, 3], [False, True, True])


def test_two_tasks_of_one_name_are_refused(tmp_path):
    with pytest.raises(InputError, match="its task would be called a-b, as that of"):
        label_files(sharded(tmp_path, {"a/b": [(1, True)], "a-b": [(1, True)]}))


def test_repeats_are_counted_and_told(tmp_path):
    rows = [(1, "True"), (1, "true"), (2, "nan"), (3, " FALSE ")]
    labels = read_labels(sharded(tmp_path, {"a": rows}), "a")
    assert labels.value.tolist() == [True, False]
    line = "task a: left out label rows: 1 without an answer, 1 that repeat another"
    assert list(labels.notes()) == [line]


def test_an_answer_that_is_no_truth_value_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"a\.parquet: row 2, column boolean_value: 'sick' is no"):
        read_labels(sharded(tmp_path, {"a": [(1, "True"), (2, "sick")]}), "a")


@pytest.mark.parametrize("zones", [(None, "UTC"), ("Asia/Tokyo", None)])
def test_labels_and_events_are_both_with_a_zone_or_both_without(tmp_path, zones):
    for zone in zones:
        for name, column, kind in (("data/train/0", "time", zones[0]), ("labels/x", "", zone)):
            path = tmp_path / f"{zone}/{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            times = pa.array([0], pa.timestamp("us", kind))
            rows = {"subject_id": [1], column or "prediction_time": times, "boolean_value": [True]}
            pq.write_table(pa.table(rows), path)
    assert len(task_files(tmp_path / str(zones[0]), "x")) == 1
    message = r"parquet: times with a zone, but none in .*parquet; give both with a zone, or none"
    for read in (task_files, read_labels):
        with pytest.raises(InputError, match=message):
            read(tmp_path / str(zones[1]), "x")
