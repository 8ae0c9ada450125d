import subprocess
import sys

import pyarrow as pa
import pytest

from ehr_ray.errors import InputError, RunError
from ehr_ray.sources.parsing import databases
from ehr_ray.sources.parsing.databases import (
    column_names,
    find_tables,
    open_database,
    read_batches,
    state_of,
    to_address,
)

ROWS = pa.table({"person_id": pa.array(range(40_000)), "word": ["a", None] * 20_000})


def of(database, schema):
    return f"{database.address}{'&' if '?' in database.address else '?'}schema={schema}"


def test_a_path_that_ends_in_duckdb_is_a_database_and_others_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my cdm?.duckdb").touch()
    (tmp_path / "folder.duckdb").mkdir()
    assert to_address("my cdm?.duckdb") == f"duckdb://{tmp_path}/my%20cdm%3F.duckdb"
    assert to_address(to_address("my cdm?.duckdb")) == to_address("my cdm?.duckdb")
    assert to_address("folder.duckdb") is to_address(tmp_path / "cdm.csv") is None
    with pytest.raises(InputError, match=r"--input /.*/gone\.duckdb: no such file; check the path"):
        to_address("gone.duckdb")


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me@host/cdm",
        "postgres://host:5433/cdm?schema=cdm,vocab&sslmode=require",
        "postgresql://me@[::1]:5433,other.host/cdm",
        "postgresql:///cdm?host=/run/postgresql",
    ],
)
def test_addresses_of_postgres_are_kept_as_they_are(address):
    assert to_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:secret@host/cdm",
        "postgresql://me:sec/secret@host/cdm",
        "postgresql://me:sec?secret@host/cdm",
        "postgresql://me:1?secret@host/cdm",
        "postgresql://me:1#secret@host/cdm",
        "postgresql://host/cdm?password=secret",
        "postgresql://host/cdm?sslpassword=secret",
        "postgresql://secret",
        "duckdb://secret.duckdb",
        "duckdb:///secret.duckdb?threads=2",
    ],
)
def test_a_password_and_a_misspelt_address_are_refused_and_not_repeated(address):
    with pytest.raises(InputError, match=r"://\.\.\.: not an address that is read; write") as error:
        to_address(address)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "package"),
    [
        ("duckdb:///cdm.duckdb", "duckdb"),
        ("postgresql://me@host/cdm", "adbc-driver-postgresql"),
    ],
)
def test_a_missing_driver_is_told_with_its_remedy(address, package, monkeypatch):
    for name in ("duckdb", "adbc_driver_postgresql", "adbc_driver_postgresql.dbapi"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError) as error:
        find_tables(address, ["person"])
    remedy = f"the package {package} is not installed; pip install 'ehr_ray[omop]'"
    assert str(error.value).endswith(remedy)


def test_tables_are_found_in_the_schemas_asked_for_in_their_order(database):
    database.fill({"person": ROWS.slice(0, 2), '"Death"': ROWS}, "a")
    database.fill({"person": ROWS.slice(0, 1), "concept": ROWS}, "b")
    database.run("CREATE VIEW a.visit AS SELECT person_id AS visit_id FROM a.person")
    assert find_tables(of(database, "a"), ["person", "visit", "concept", "pg_class"]) == {
        "person": "person",
        "visit": "visit",
    }
    assert set(find_tables(of(database, "b,a"), ["person", "visit", "concept"])) == {
        *("person", "visit", "concept")
    }
    assert column_names(of(database, "a"), "visit") == ["visit_id"]
    for schemas, rows in (("a,b", 2), ("b,a", 1)):
        batches = read_batches(of(database, schemas), "person", ["person_id"])
        assert sum(len(batch) for batch in batches) == rows


def test_without_a_schema_it_is_the_one_that_tables_are_made_in(database):
    schema = {"duckdb": "main", "postgresql": "public"}[database.kind]
    database.fill({"person": ROWS}, schema)
    database.fill({"concept": ROWS}, "elsewhere")
    assert find_tables(database.address, ["person", "concept"]) == {"person": "person"}
    batches = read_batches(database.address, "person", ["person_id"])
    assert sum(len(batch) for batch in batches) == len(ROWS)


def test_a_schema_may_have_the_name_of_its_file(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "cdm.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE SCHEMA cdm.cdm")
        connection.execute("CREATE TABLE cdm.cdm.person (person_id INT)")
    assert find_tables(f"duckdb://{path}?schema=cdm", ["person"]) == {"person": "person"}


def test_a_table_is_read_in_blocks_in_its_order_without_the_rest_being_read(database, monkeypatch):
    database.fill({"person": ROWS}, "cdm")
    monkeypatch.setattr(databases, "BLOCK_BYTES", 100_000)
    address = of(database, "cdm")
    batches = [*read_batches(address, "person", ["word", "person_id"])]
    assert len(batches) > 2
    assert max(len(batch) for batch in batches) <= databases.BLOCK_ROWS
    assert pa.Table.from_batches(batches) == ROWS.select(["word", "person_id"])
    some = read_batches(address, "person", ["person_id"])
    next(some)
    some.close()
    database.run("DROP TABLE cdm.person")  # nothing holds it


def test_decimals_and_times_with_a_zone_are_plain_columns(database):
    database.run(
        "CREATE TABLE odd (value DECIMAL(10, 3), seen TIMESTAMPTZ)",
        "INSERT INTO odd VALUES (1.5, '2020-01-02 03:04:05+02'), (NULL, NULL)",
    )
    (batch,) = read_batches(database.address, "odd", ["value", "seen"])
    assert [float(value) for value in batch["value"].to_pylist()[:1]] == [1.5]
    assert batch["value"].cast(pa.string()).null_count == 1
    assert str(batch["seen"].cast(pa.timestamp("us"))[0]) == "2020-01-02 01:04:05"


def test_nothing_can_be_written(database):
    database.fill({"person": ROWS}, "cdm")
    before = state_of(of(database, "cdm"), {"person": ROWS.column_names})
    with (
        pytest.raises(RunError, match=r"read-only (transaction|mode)"),
        open_database(of(database, "cdm"), RunError) as query,
    ):
        query("DELETE FROM person")
    assert state_of(of(database, "cdm"), {"person": ROWS.column_names}) == before
    assert before[1] > 100_000


def test_a_changed_value_is_another_state(database):
    database.fill({"person": ROWS}, "cdm")
    asked = (of(database, "cdm"), {"person": ["person_id", "word"]})
    before, _ = state_of(*asked)
    assert state_of(*asked)[0] == before
    database.run("UPDATE cdm.person SET word = 'b' WHERE person_id = 7")
    assert state_of(*asked)[0] != before


def test_two_processes_read_one_file_at_once(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    path = tmp_path / "cdm.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE person AS SELECT range AS person_id FROM range(40000)")
    address = to_address(path)
    reading = read_batches(address, "person", ["person_id"])
    next(reading)
    program = (
        "from ehr_ray.sources.parsing.databases import read_batches\n"
        f"print(sum(len(b) for b in read_batches({address!r}, 'person', ['person_id'])))"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert there.stdout == "40000\n", there.stderr
    assert sum(len(batch) for batch in reading) == 40_000 - databases.BLOCK_ROWS


def test_what_cannot_be_opened_is_one_line(tmp_path):
    pytest.importorskip("duckdb")
    path = tmp_path / "cdm.duckdb"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(InputError, match=r"cdm\.duckdb: .*not a valid DuckDB .*; check it$"):
        find_tables(to_address(path), ["person"])
    pytest.importorskip("adbc_driver_postgresql")
    address = f"postgresql://me@/cdm?host={tmp_path}"
    with pytest.raises(InputError, match="Failed to connect") as error:
        find_tables(address, ["person"])
    assert str(error.value).startswith(f"--input {address}: ")
    assert "\n" not in str(error.value)
