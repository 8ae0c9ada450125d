import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.commands.ingest import ingest
from ehr_ray.sources.building.metadata import TaskSummary


def test_the_screen_says_what_made_no_label():
    assert str(TaskSummary(1200, 0.25)) == "1,200 labels, mean 0.250"
    text = "3 labels, mean 0.500, 2 rows without an answer, 1 rows that repeat another"
    assert str(TaskSummary(3, 0.5, 2, 1)) == text


def test_a_task_nobody_has_an_answer_of_is_told_and_not_written(tmp_path):
    (tmp_path / "in/data").mkdir(parents=True)
    (tmp_path / "in/labels").mkdir()
    time = pa.array([0], pa.timestamp("us"))
    shard = {"subject_id": [1], "time": time, "code": ["A"], "numeric_value": [1.0]}
    pq.write_table(pa.table(shard), tmp_path / "in/data/0.parquet")
    label = {"subject_id": [1], "prediction_time": time, "boolean_value": ["nan"]}
    pq.write_table(pa.table(label), tmp_path / "in/labels/sick.parquet")
    summary = ingest("meds", tmp_path / "in", tmp_path / "out", splits="all:train", cpus=1)
    assert "task sick: 0 labels, 1 rows without an answer" in str(summary)
    assert not (tmp_path / "out/labels").exists()
