import pickle

import pyarrow.parquet as pq

from ehr_ray.config.yaml_files import override
from ehr_ray.events.labels import label_files, read_labels
from ehr_ray.events.patients import cohort_shards
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse
from ehr_ray.runtime.data.rows import RowMaker


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
