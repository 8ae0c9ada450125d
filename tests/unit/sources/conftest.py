import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.commands.ingest import ingest
from ehr_ray.events.schema import SPLITS

TREATMENT = {
    "ranges": "ranges",
    "units": "conversions",
    "repeats": "repeats",
    "code_map": "code_map",
    "split_by": "split_by",
    "unlisted": "unlisted",
}
"""What `ingest` is told of values beside the options of a source."""


@pytest.fixture
def cohort(tmp_path):
    """Ingest into a fresh folder: cohort(source, input, splits=..., option=...)."""

    def run(
        source, input=None, *, name="cohort", splits=None, seed=0, max_rejected=0.01, **options
    ):
        treatment = {name: options.pop(key) for key, name in TREATMENT.items() if key in options}
        output = tmp_path / "out" / name
        ingest(
            source,
            input,
            output,
            splits=splits,
            seed=seed,
            max_rejected=max_rejected,
            options=options,
            cpus=1,
            **treatment,
        )
        return output

    return run


@pytest.fixture
def events_of():
    """All events of a cohort as one table, shard after shard."""

    def read(path, split=None):
        folders = [split] if split else SPLITS
        shards = [p for s in folders for p in sorted((path / "data" / s).glob("*.parquet"))]
        return pa.concat_tables(pq.ParquetFile(p).read() for p in shards)

    return read


@pytest.fixture
def descriptions_of():
    """What each code of a cohort is called."""

    def read(path):
        table = pq.read_table(path / "metadata" / "codes.parquet")
        return dict(zip(table["code"].to_pylist(), table["description"].to_pylist(), strict=True))

    return read


@pytest.fixture
def labels_of():
    """The labels of a cohort by task, each a tuple of texts."""

    def read(path):
        return {
            file.stem: [tuple(map(str, row.values())) for row in pq.read_table(file).to_pylist()]
            for file in (path / "labels").iterdir()
        }

    return read


@pytest.fixture
def write_stays():
    """Write `<RecordID>.txt` files: write_stays(folder, {id: [row, ...]})."""

    def write(folder, stays):
        folder.mkdir(parents=True, exist_ok=True)
        for record, rows in stays.items():
            (folder / f"{record}.txt").write_text(stay_text(record, rows))

    return write


def stay_text(record, rows):
    head = ["Time,Parameter,Value", f"00:00,RecordID,{record}"]
    return "\n".join([*head, *rows]) + "\n"


@pytest.fixture
def write_archive():
    """Write stays into a tar.gz: write_archive(path, {id: [row, ...]})."""

    def write(path, stays):
        with tarfile.open(path, "w:gz") as archive:
            for record, rows in stays.items():
                data = stay_text(record, rows).encode()
                member = tarfile.TarInfo(f"set-x/{record}.txt")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    return write


@pytest.fixture
def write_patient():
    """Write one patient file: write_patient(path, [(variable, value, minute), ...])."""

    def write(path, rows, **types):
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = zip(*rows, strict=True) if rows else ((), (), ())
        names = ("variable", "value", "minute")
        kinds = {"variable": pa.string(), "value": pa.float64(), "minute": pa.float64(), **types}
        table = {n: pa.array(c, kinds[n]) for n, c in zip(names, columns, strict=True)}
        pq.write_table(pa.table(table), path)

    return write


@dataclass(frozen=True)
class Database:
    """A database to read: its address, and the connection of somebody who may write to it."""

    kind: str
    address: str
    connect: object

    def run(self, *statements):
        with self.connect() as connection:
            for statement in statements:
                cursor = connection.cursor()
                cursor.execute(statement)
                cursor.close()
            connection.commit() if self.kind == "postgresql" else None

    def fill(self, tables, schema):
        """Make a schema with tables, name -> Arrow."""
        self.run(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        with self.connect() as connection:
            cursor = connection.cursor()
            for name, table in tables.items():
                if self.kind == "postgresql":
                    cursor.adbc_ingest(name, table, mode="create", db_schema_name=schema)
                else:
                    cursor.register("given", table)
                    cursor.execute(f"CREATE TABLE {schema}.{name} AS SELECT * FROM given")
            cursor.close()
            connection.commit() if self.kind == "postgresql" else None


@pytest.fixture(params=["duckdb", "postgresql"])
def database(request, tmp_path):
    """An empty database of each kind; skips where its driver, or Postgres itself, is missing."""
    if request.param == "duckdb":
        duckdb = pytest.importorskip("duckdb")
        path = tmp_path / "of a hospital.duckdb"
        duckdb.connect(str(path)).close()
        address = f"duckdb://{str(path).replace(' ', '%20')}"
        return Database("duckdb", address, lambda: duckdb.connect(str(path)))
    driver = pytest.importorskip("adbc_driver_postgresql.dbapi")
    server = request.getfixturevalue("postgres_server")
    name = f"cdm{abs(hash(str(tmp_path)))}"
    Database("postgresql", "", lambda: driver.connect(server("postgres"), autocommit=True)).run(
        f"CREATE DATABASE {name}"
    )
    return Database("postgresql", server(name), lambda: driver.connect(server(name)))


@pytest.fixture(scope="session")
def postgres_server():
    """A server of our own, on a socket: server(database) is an address; skips without Postgres."""
    initdb = shutil.which("initdb")
    if initdb is None:
        pytest.skip("Postgres is not installed: no initdb")
    programs = Path(initdb).resolve().parent
    # It will not run as root.
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if not os.getuid() else {}
    home = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        shutil.chown(home, "postgres")

    def run(program, *arguments):
        command = [programs / program, "-D", home / "data", *arguments]
        subprocess.run(command, check=True, cwd=home, stdout=subprocess.DEVNULL, **user)

    run("initdb", "-A", "trust", "-U", "reader", "--no-sync")
    settings = f"-k {home} -c listen_addresses= -F"
    run("pg_ctl", "-w", "-o", settings, "-l", home / "log", "start")
    yield lambda name: f"postgresql://reader@/{name}?host={home}"
    run("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(home)
