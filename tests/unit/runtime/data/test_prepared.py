import pickle

import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.config.yaml_files import override
from ehr_ray.events.labels import label_files, read_labels
from ehr_ray.events.patients import cohort_shards
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import BlockMaker, prepared


def test_labels_are_read_by_each_task_and_not_sent_to_it(synthetic_cohort, tmp_path):
    """The function that travels says where the labels are, so its size is not that of a cohort."""
    plain = {"family": "set_vae", "name": "x", "data": {"cohort": str(synthetic_cohort)}}
    experiment = parse(override(plain, {"task.name": "outcome"}))
    vocabulary = Vocabulary.from_table(pq.read_table(synthetic_cohort / "metadata/codes.parquet"))
    files = label_files(synthetic_cohort)["outcome"]
    sent = pickle.dumps(BlockMaker(experiment, vocabulary, files))
    assert len(sent) < len(pickle.dumps(vocabulary)) + len(pickle.dumps(experiment)) + 500
    make = pickle.loads(sent)
    labels = read_labels(synthetic_cohort, "outcome")
    (shard, *_) = cohort_shards(synthetic_cohort, "train")
    make({"shard": str(shard), "target": str(tmp_path / "0.arrow"), "split": "train"})
    with pa.ipc.open_file(str(tmp_path / "0.arrow")) as file:
        rows = file.read_all()
    assert len(rows) == len(set(pq.read_table(shard)["subject_id"].to_pylist()))
    expected = dict(zip(labels.subject_id.tolist(), labels.value.tolist(), strict=True))
    pairs = zip(rows["subject_id"].to_pylist(), rows["label"].to_pylist(), strict=True)
    assert all(expected[subject] == bool(label) for subject, label in pairs)


def test_each_scale_has_rows_of_its_own(synthetic_cohort, tmp_path):
    data = {"cohort": str(synthetic_cohort), "cache_dir": str(tmp_path)}
    folders = set()
    for scale in ("robust", "standard"):
        plain = {"family": "vitals_vae", "name": "x", "data": {**data, "scale": scale}}
        with prepared(parse(plain), get_family("vitals_vae"), on_ray=False) as found:
            assert found.vocabulary.scaling == scale
            folders.add(found.blocks["train"][0].parent)
    assert len(folders) == 2
