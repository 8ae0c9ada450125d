import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.events.code_counts import COUNTS, count_shard
from ehr_ray.events.code_statistics import fit_codes
from ehr_ray.events.vocabulary import Vocabulary


def test_moments_are_told_chunk_by_chunk(tmp_path, in_chunks, write):
    path = write(tmp_path / "a.parquet", ["A", "A", "B", "A"], [1.0, 3.0, None, 5.0])
    with in_chunks(2):
        shard = count_shard(path)
    assert (shard.subjects, shard.events, shard.min_time, shard.max_time) == (4, 4, 0, 0)
    assert shard.codes.schema.equals(COUNTS)
    rows = shard.codes.select(["code", "chunk", "count", "num_values", "mean", "squares"])
    assert [tuple(row.values()) for row in rows.to_pylist()] == [
        ("A", 0, 2, 2, 2.0, 2.0),
        ("A", 1, 1, 1, 5.0, 0.0),
        ("B", 1, 1, 0, 0.0, 0.0),
    ]
    assert shard.codes["num_subjects"].to_pylist() == [3, 0, 1]  # with a code's first chunk


def test_an_empty_shard_tells_of_no_code(tmp_path, write):
    shard = count_shard(write(tmp_path / "a.parquet", [], []))
    assert (shard.subjects, shard.events, shard.min_time, len(shard.codes)) == (0, 0, None, 0)


def test_infinite_values_are_counted_as_events_only(tmp_path, write):
    path = write(tmp_path / "a.parquet", ["A", "A", "A"], [1.0, np.inf, -np.inf])
    row = fit_codes([path]).to_pylist()[0]
    assert (row["count"], row["num_values"], row["mean"], row["std"]) == (3, 1, 1.0, 0.0)


def test_a_shard_without_values_has_counts_only(tmp_path):
    pq.write_table(pa.table({"subject_id": [1, 2], "code": ["A", "A"]}), tmp_path / "a.parquet")
    row = fit_codes([tmp_path / "a.parquet"]).to_pylist()[0]
    assert (row["count"], row["num_values"]) == (2, 0)


@pytest.mark.parametrize("rows", [2, 3, 5, 100])
def test_subjects_of_a_code_are_counted_once_wherever_a_chunk_ends(
    tmp_path, in_chunks, rows, write
):
    codes, subjects = list("AABABABCA"), [1, 1, 1, 1, 2, 2, 3, 3, 3]
    path = write(tmp_path / "a.parquet", codes, [None] * len(codes))
    table = pq.read_table(path).set_column(0, "subject_id", pa.array(subjects))
    pq.write_table(table, path)
    again = write(tmp_path / "b.parquet", ["A"], [None])  # of another subject
    with in_chunks(rows):
        fitted = fit_codes([path, again])
    assert fitted["code"].to_pylist() == ["A", "B", "C"]
    assert fitted["num_subjects"].to_pylist() == [4, 3, 1]
    assert Vocabulary.from_table(fitted).subjects.tolist() == [4, 3, 1]
    kept = Vocabulary.from_table(Vocabulary.from_table(fitted).to_table())
    assert kept.subjects.tolist() == [4, 3, 1]
    older = Vocabulary.from_table(fitted.drop_columns("num_subjects"))
    assert older.subjects.tolist() == older.count.tolist() == [6, 3, 1]
