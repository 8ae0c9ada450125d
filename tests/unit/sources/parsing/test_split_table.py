import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing import csv_files, split_table
from ehr_ray.sources.parsing.identifiers import subject_id
from ehr_ray.sources.parsing.split_table import (
    SplitTable,
    read_mapped,
    read_split_batches,
    read_splits,
    write_mapped,
)


def test_a_table_of_splits_is_read_by_the_rule_of_ids_and_the_usual_names(tmp_path):
    (tmp_path / "s.csv").write_text("split,subject_id\nvalid,2.0\ntrain,1\nTest,P-3\ntrain,1\n")
    table = read_splits(str(tmp_path / "s.csv"))
    ids = np.array([subject_id(name) for name in ("1", "2", "P-3", "4")])
    assert table.of(ids).to_pylist() == ["train", "tuning", "held_out", None]
    assert table.renamed == {"valid": "tuning", "Test": "held_out"}


def test_a_table_is_mapped_as_it_was_read(tmp_path):
    (tmp_path / "s.csv").write_text("split,subject_id\nvalid,2\ntrain,1\ntest,-3\n")
    read = read_splits(str(tmp_path / "s.csv"))
    write_mapped(read, tmp_path / "s.arrow")
    mapped = read_mapped(tmp_path / "s.arrow")
    ids = np.array([3, 2, -3, 1])
    assert (
        mapped.of(ids).to_pylist()
        == read.of(ids).to_pylist()
        == [None, "tuning", "held_out", "train"]
    )
    assert mapped.renamed == read.renamed
    assert not mapped.subject_id.flags.writeable
    nobody = SplitTable(ids[:0], np.zeros(0, np.int8), {})
    write_mapped(nobody, tmp_path / "nobody.arrow")
    assert read_mapped(tmp_path / "nobody.arrow").of(ids).to_pylist() == [None] * 4


@pytest.mark.parametrize("name", ["s.csv", "s.parquet"])
def test_a_table_read_in_pieces_is_the_table(tmp_path, monkeypatch, name):
    table = pa.table({"subject_id": [3, 9, 1, 3], "split": ["test", "dev", "train", "test"]})
    pq.write_table(table, tmp_path / "s.parquet")
    pa.csv.write_csv(table, tmp_path / "s.csv")
    monkeypatch.setattr(split_table, "BATCH_ROWS", 2)
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 32)
    found = read_splits(str(tmp_path / name))
    assert (found.subject_id.tolist(), found.split.tolist()) == ([1, 3, 9], [0, 2, 1])
    assert found.renamed == {"test": "held_out", "dev": "tuning"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("subject_id,split\n1,train\n1,test\n", "1 subjects are in more than one split"),
        ("subject_id,split\n1,fold3\n", "split 'fold3': not one of"),
        ("subject_id,split\n1,\n", "split '': not one of"),
        ("subject_id,split\n,train\n", "row 1 has no subject_id"),
        (
            "id,split\n1,train\n",
            "no table of subject_id and split: no column subject_id, it has id",
        ),
        ("Subject_ID,split \n1,train\n", "no column subject_id, it has Subject_ID, 'split '; name"),
        ("subject_id;split\n1;train\n", "it has subject_id;split; name them so, in small letters"),
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
