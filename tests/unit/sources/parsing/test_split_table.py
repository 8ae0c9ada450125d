import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing import split_table
from ehr_ray.sources.parsing.identifiers import subject_id
from ehr_ray.sources.parsing.split_table import read_split_batches, read_splits


def test_a_table_of_splits_is_read_by_the_rule_of_ids_and_the_usual_names(tmp_path):
    (tmp_path / "s.csv").write_text("split,subject_id\nvalid,2.0\ntrain,1\ntest,P-3\ntrain,1\n")
    table = read_splits(str(tmp_path / "s.csv"))
    ids = np.array([subject_id(name) for name in ("1", "2", "P-3", "4")])
    assert table.of(ids).to_pylist() == ["train", "tuning", "held_out", None]
    assert table.renamed == {"valid": "tuning", "test": "held_out"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject_id,split\n1,train\n1,test\n", "1 subjects are in more than one split"),
        ("subject_id,split\n1,fold3\n", "split 'fold3': not one of"),
        ("subject_id,split\n1,\n", "split '': not one of"),
        ("subject_id,split\n,train\n", "row 1 has no subject_id"),
        ("id,split\n1,train\n", "no table of subject_id and split"),
        ("", "empty, not even a header"),
    ],
)
def test_a_table_that_does_not_say_who_is_where_is_refused(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_splits(str(tmp_path / "s.csv"))


def test_a_table_is_read_some_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(split_table, "BATCH_ROWS", 2)
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"split": ["test", "dev", "train"], "subject_id": [3, 9, 1]}), path)
    batches = [(ids.tolist(), split.tolist()) for ids, split in read_split_batches(path)]
    assert batches == [([3, 9], [2, 1]), ([1], [0])]
    pq.write_table(pa.table({"split": ["test"] * 4, "subject_id": [3, 9, 1, None]}), path)
    with pytest.raises(InputError, match="row 4 has no subject_id"):
        list(read_split_batches(path))
    pq.write_table(pa.table({"subject_id": [3]}), path)
    with pytest.raises(InputError, match="no table of subject_id and split"):
        list(read_split_batches(path))
