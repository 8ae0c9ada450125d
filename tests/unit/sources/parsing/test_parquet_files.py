import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing import parquet_files
from ehr_ray.sources.parsing.parquet_files import read_row_groups, split_row_groups
from ehr_ray.sources.source import Unit


@pytest.fixture
def unit(tmp_path, monkeypatch):
    pq.write_table(
        pa.table({"a": range(25), "b": range(25)}), tmp_path / "f.parquet", row_group_size=4
    )
    monkeypatch.setattr(parquet_files, "CHUNK_ROWS", 10)
    return Unit(str(tmp_path), ("f.parquet",))


def test_units_are_runs_of_row_groups_that_cover_the_file(unit):
    units = split_row_groups(unit)
    assert [(u.start, u.stop) for u in units] == [(0, 3), (3, 6), (6, 7)]
    rows = []
    for part in units:
        for first, table in read_row_groups(part, ["a"]):
            assert first == len(rows)
            assert len(table) <= 10
            rows += table["a"].to_pylist()
    assert rows == list(range(25))


def test_only_the_columns_asked_for_are_read(unit):
    (part, *_) = split_row_groups(unit)
    _, table = next(read_row_groups(part, ["b"], ("c",)))
    assert table.column_names == ["b"]


def test_a_missing_column_is_named(unit):
    with pytest.raises(InputError, match=r"f.parquet: no column c; it has a, b"):
        next(read_row_groups(unit, ["c"]))


def test_a_damaged_file_stays_one_unit(tmp_path):
    (tmp_path / "f.parquet").write_bytes(b"PAR1")
    unit = Unit(str(tmp_path), ("f.parquet",))
    assert split_row_groups(unit) == [unit]
    with pytest.raises(parquet_files.READ_ERRORS):
        next(read_row_groups(unit, ["a"]))
