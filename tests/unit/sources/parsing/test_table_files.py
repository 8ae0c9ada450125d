import pytest

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.table_files import table_files


def test_files_are_found_whatever_their_capitals_and_the_plain_one_is_read(tmp_path, caplog):
    for name in ("PERSON.CSV", "Death.parquet", "visit.csv", "visit.csv.gz", "other.txt"):
        (tmp_path / name).touch()
    found = table_files(tmp_path, ["person", "death", "visit", "other"])
    assert found == {"person": "PERSON.CSV", "death": "Death.parquet", "visit": "visit.csv"}
    (note,) = [record.getMessage() for record in caplog.records]
    assert note.endswith("visit.csv is read, visit.csv.gz beside it is not")
    with pytest.raises(InputError, match="not a folder"):
        table_files(tmp_path / "visit.csv", ["visit"])
