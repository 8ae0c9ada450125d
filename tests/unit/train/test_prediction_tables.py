import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ehr_ray.train.prediction_tables import entries_table, list_column, matrix, read_tables


def test_a_tensor_comes_back_from_its_column():
    values = torch.arange(6.0).reshape(3, 2)
    table = pa.table({"embedding": list_column(values), "logit": list_column(values[:, 0])})
    assert table.schema.field("embedding").type == pa.list_(pa.float32())
    assert table.schema.field("logit").type == pa.float32()
    np.testing.assert_array_equal(matrix(table, "embedding"), values.numpy())
    halves = pa.table({"embedding": list_column(values.bfloat16())})
    np.testing.assert_array_equal(matrix(halves, "embedding"), values.numpy())


def test_entries_are_told_by_the_place_of_their_sample_in_the_shard():
    batch = {
        "patient": torch.tensor([0, 0, 1]),
        "latent": torch.ones(3, 2),
        "code": torch.tensor([7, 8, 9]),
    }
    table = entries_table(batch, where=torch.tensor([40, 42]))
    assert table.to_pydict() == {
        "sample": [40, 40, 42],
        "latent": [[1.0, 1.0]] * 3,
        "code": [7, 8, 9],
    }


def test_tables_of_shards_follow_each_other_where_there_are_any(tmp_path):
    folders = [tmp_path / name for name in ("0", "1", "2")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        if number != 1:  # a shard without samples writes none
            pq.write_table(pa.table({"n": [number]}), folder / "samples.parquet")
    assert read_tables(folders, "samples")["n"].to_pylist() == [0, 2]
    assert read_tables(folders, "latents") is None
