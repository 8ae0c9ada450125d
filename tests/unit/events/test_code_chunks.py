import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.events.code_chunks import code_chunks
from ehr_ray.events.code_statistics import fit_codes


@pytest.mark.parametrize("rows", [1, 4, 7, 10, 100])
def test_chunks_have_as_many_rows_whatever_the_row_groups(tmp_path, in_chunks, write, rows):
    """Row groups of 7 here: codes and values of a chunk are of several of them."""
    codes, values = list("ABACABDAABEDCBAABCA"), np.arange(19, dtype=np.float32)
    path = write(tmp_path / "a.parquet", codes, values)
    names = {"E": 0}
    with in_chunks(rows):
        found = list(code_chunks(path, names, ["subject_id"]))
    assert [len(ids) for ids, *_ in found[:-1]] == [rows] * (len(found) - 1)
    ids, numbers = (np.concatenate([chunk[i] for chunk in found]) for i in range(2))
    assert list(names) == list("EABCD")  # in order of first appearance
    assert [[*names][i] for i in ids] == codes
    assert numbers.tolist() == values.tolist()
    subjects = pa.concat_tables([table for *_, table in found])["subject_id"]
    assert subjects.to_pylist() == list(range(19))


@pytest.mark.parametrize("content", [b"not parquet at all", b""])
def test_a_corrupt_shard_is_named(tmp_path, content):
    (tmp_path / "bad.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.parquet"):
        fit_codes([tmp_path / "bad.parquet"])


def test_a_missing_shard_or_code_column_is_named(tmp_path):
    pq.write_table(pa.table({"subject_id": [1]}), tmp_path / "no_code.parquet")
    for name in ("gone", "no_code"):
        with pytest.raises(InputError, match=name):
            fit_codes([tmp_path / f"{name}.parquet"])
