import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.labels import choose_task, read_labels, tasks_of


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
    assert labels.cuts() == {1: [300_000_000, 420_000_000], 2: [540_000_000]}


def test_look_up_answers_by_subject_and_time(cohort):
    labels = read_labels(cohort({"death": [(1, 7, False), (1, 5, True)]}), "death")
    order = [1, 0]
    found = labels.look_up(labels.subject_id[order], labels.prediction_time[order])
    assert found.tolist() == [False, True]
    with pytest.raises(InputError, match="1 of 1 rows have no label"):
        labels.look_up(labels.subject_id[:1] + 1, labels.prediction_time[:1])


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
