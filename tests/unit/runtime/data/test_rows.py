import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.config.task import TaskConfig
from ehr_ray.config.yaml_files import override
from ehr_ray.events.labels import label_files, read_labels
from ehr_ray.events.patients import Patient, cohort_shards
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse
from ehr_ray.runtime.data.rows import RowMaker, TaskTimes, sampled, task_labels


def test_labels_are_read_by_each_task_and_not_sent_to_it(synthetic_cohort):
    """The function that travels says where the labels are, so its size is not that of a cohort."""
    plain = {"family": "set_vae", "name": "x", "data": {"cohort": str(synthetic_cohort)}}
    experiment = parse(override(plain, {"task.name": "outcome"}))
    vocabulary = Vocabulary.from_table(pq.read_table(synthetic_cohort / "metadata/codes.parquet"))
    files = label_files(synthetic_cohort)["outcome"]
    sent = pickle.dumps(RowMaker(experiment, vocabulary, files))
    assert len(sent) < len(pickle.dumps(vocabulary)) + len(pickle.dumps(experiment)) + 500
    make = pickle.loads(sent)
    labels = read_labels(synthetic_cohort, "outcome")
    (shard, *_) = cohort_shards(synthetic_cohort, "train")
    rows = list(make.of({"shard": str(shard), "split": "train"}))
    assert len(rows) == len(set(pq.read_table(shard)["subject_id"].to_pylist()))
    expected = dict(zip(labels.subject_id.tolist(), labels.value.tolist(), strict=True))
    assert all(expected[int(row["subject_id"])] == bool(row["label"]) for row in rows)


@pytest.mark.parametrize(
    ("admitted", "early"),
    [([10, 1010], [16, 34, 1016, 1034]), ([10], [16, 34, 16, 34]), ([], [6, 24, 6, 24])],
)
def test_early_cuts_are_hours_of_the_admission_before_each_label_in_train_alone(
    tmp_path, admitted, early
):
    """With admissions after 10 and 1010 hours, the answer of the second says nothing of the first;
    the cut after 60 hours of either comes after what is known."""
    hour = 3_600_000_000
    admitted = np.array(admitted, np.int64) * hour
    none = (np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))

    class Made(RowMaker):
        def _read(self, _job):
            yield Patient(7, 0, *none, admitted)

    labels = {"subject_id": [7, 7], "boolean_value": [True, False]}
    labels["prediction_time"] = pa.array([58 * hour, 1058 * hour], pa.timestamp("us"))
    pq.write_table(pa.table(labels), tmp_path / "death.parquet")
    plain = {"family": "set_vae", "name": "x", "data": {"cohort": str(tmp_path)}}
    changes = {"task.name": "death", "task.hours": [6, 24, 1060]}
    maker = Made(parse(override(plain, changes)), None, [tmp_path / "death.parquet"])
    shard = str(tmp_path / "shard.parquet")
    pq.write_table(pa.table({"subject_id": [7]}), shard)
    ((_, cuts),) = maker.everybody({"shard": shard, "split": "train"})
    at = [time / hour for time, _ in cuts]
    assert at == [*early[:2], 58, *early[2:], 1058]
    assert [answer for _, answer in cuts] == [True] * 3 + [False] * 3
    ((_, cuts),) = maker.everybody({"shard": shard, "split": "tuning"})
    assert [time / hour for time, _ in cuts] == [58, 1058]


def test_prediction_times_of_a_task_are_those_of_the_subjects_of_a_shard(synthetic_cohort):
    """They are read where the shard is: what travels says only where they lie."""
    files = tuple(str(path) for path in label_files(synthetic_cohort)["outcome"])
    every = read_labels(synthetic_cohort, "outcome").cuts()
    (shard, *_) = cohort_shards(synthetic_cohort, "train")
    ids = set(pq.read_table(shard)["subject_id"].to_pylist())
    assert len(pickle.dumps(TaskTimes("outcome", files))) < 500
    assert TaskTimes("outcome", files).of(shard) == {who: every[who] for who in ids & set(every)}
    half = TaskTimes("outcome", files, 0.5).of(shard)
    assert half == {who: every[who] for who in ids & set(every) if sampled(who, 0.5)}
    assert 0 < len(half) < len(ids)


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_a_shard_without_an_answer_has_no_label_of_whatever_kind(tmp_path, kind):
    """A file as other tools write it has a column of each kind, which of a shard may be empty."""
    labels = {
        "subject_id": [1, 2],
        "prediction_time": pa.array([5, 5], pa.timestamp("us")),
        "boolean_value": pa.nulls(2, pa.bool_()),
        "float_value": [2.5, None] if kind == "regression" else pa.nulls(2, pa.float64()),
        "categorical_value": ["a", None] if kind == "classes" else pa.nulls(2, pa.string()),
    }
    pq.write_table(pa.table(labels), tmp_path / "x.parquet")
    task = TaskConfig(name="x", kind=kind, classes=["a", "b"] if kind == "classes" else [])
    paths = [tmp_path / "x.parquet"]
    assert len(task_labels(task, paths, np.array([1])).subject_id) == 1
    assert len(task_labels(task, paths, np.array([2])).subject_id) == 0
