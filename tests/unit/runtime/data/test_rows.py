import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.config.yaml_files import override
from ehr_ray.events.labels import read_labels
from ehr_ray.events.patients import Patient, cohort_shards
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse
from ehr_ray.runtime.data.rows import RowMaker, TaskTimes, sampled
from ehr_ray.runtime.data.task_labels import task_labels


def test_labels_are_read_by_each_task_and_not_sent_to_it(synthetic_cohort, tmp_path):
    """The function that travels says where the labels are, so its size is not that of a cohort."""
    plain = {"family": "set_vae", "name": "x", "data": {"cohort": str(synthetic_cohort)}}
    experiment = parse(override(plain, {"task.name": "outcome"}))
    vocabulary = Vocabulary.from_table(pq.read_table(synthetic_cohort / "metadata/codes.parquet"))
    found = task_labels(synthetic_cohort, "outcome", tmp_path, on_ray=False)
    sent = pickle.dumps(RowMaker(experiment, vocabulary, found))
    assert len(sent) < len(pickle.dumps(vocabulary)) + len(pickle.dumps(experiment)) + 1500
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
    shard = tmp_path / "data" / "train" / "0.parquet"
    for path, table in (
        (tmp_path / "labels" / "death.parquet", labels),
        (shard, {"subject_id": [7]}),
    ):
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(table), path)
    plain = {"family": "set_vae", "name": "x", "data": {"cohort": str(tmp_path)}}
    changes = {"task.name": "death", "task.hours": [6, 24, 1060]}
    found = task_labels(tmp_path, "death", tmp_path / "cache", on_ray=False)
    maker = Made(parse(override(plain, changes)), None, found)
    ((_, cuts),) = maker.everybody({"shard": str(shard), "split": "train"})
    at = [time / hour for time, _ in cuts]
    assert at == [*early[:2], 58, *early[2:], 1058]
    assert [answer for _, answer in cuts] == [True] * 3 + [False] * 3
    ((_, cuts),) = maker.everybody({"shard": str(shard), "split": "tuning"})
    assert [time / hour for time, _ in cuts] == [58, 1058]


def test_prediction_times_of_a_task_are_those_of_the_subjects_of_a_shard(
    synthetic_cohort, tmp_path
):
    every = read_labels(synthetic_cohort, "outcome").cuts()
    (shard, *_) = cohort_shards(synthetic_cohort, "train")
    ids = set(pq.read_table(shard)["subject_id"].to_pylist())
    found = task_labels(synthetic_cohort, "outcome", tmp_path, on_ray=False)
    own = found.of(shard)
    assert TaskTimes(found).of(own) == {who: every[who] for who in ids & set(every)}
    half = TaskTimes(found, 0.5).of(own)
    assert half == {who: every[who] for who in ids & set(every) if sampled(who, 0.5)}
    assert 0 < len(half) < len(ids)
