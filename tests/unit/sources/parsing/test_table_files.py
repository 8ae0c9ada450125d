import logging

import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.table_files import table_files, warn_of_missing


def test_files_are_found_whatever_their_capitals_and_the_plain_one_is_read(tmp_path, caplog):
    for name in ("PERSON.CSV", "Death.parquet", "visit.csv", "visit.csv.gz", "other.txt"):
        (tmp_path / name).touch()
    found = table_files(tmp_path, ["person", "death", "visit", "other"])
    assert found == {"person": "PERSON.CSV", "death": "Death.parquet", "visit": "visit.csv"}
    (note,) = [record.getMessage() for record in caplog.records]
    assert note.endswith("visit.csv is read, visit.csv.gz beside it is not")
    with pytest.raises(InputError, match="not a folder"):
        table_files(tmp_path / "visit.csv", ["visit"])


def test_many_missing_tables_are_one_short_line_and_all_of_them_in_the_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    names = [f"table{i}" for i in range(30)]
    for missing in ([], names[:2], names):
        warn_of_missing(tmp_path, missing)
    few, all_, many = (record.getMessage() for record in caplog.records)
    assert few.endswith("not there, left out: table0, table1")
    assert many.endswith(
        "left out: table0, table1, table2, table3, table4 and 25 more, which -v names"
    )
    assert [name for name in names if name not in all_] == []
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
