"""Tables of a database, read-only and in blocks: a DuckDB file, or Postgres.

An address is `duckdb:///folder/cdm.duckdb` or `postgresql://user@host/database`; `?schema=a,b`
says where its tables are looked for, in this order. It never holds a password, so it may stand in
logs and records: Postgres finds one in PGPASSWORD or ~/.pgpass. Tables give their rows in one order
each time, as long as nobody writes to them.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlencode

import pyarrow as pa

from ehr_ray.errors import InputError, RunError, UserError

BLOCK_ROWS: Final = 1 << 14
BLOCK_BYTES: Final = 1 << 21
MEMORY: Final = "512MB"
"""What DuckDB keeps of a file that it reads; else it would be most of the machine's."""
SUFFIX: Final = ".duckdb"

_SCHEME: Final = re.compile(r"(duckdb|postgres|postgresql)://")
_HOST: Final = r"(?:[\w.%-]+|\[[\da-fA-F:]+\])?(?::\d+)?"
_POSTGRES: Final = re.compile(
    rf"postgres(?:ql)?://(?:[^:@/?#\s]*@)?{_HOST}(?:,{_HOST})*/[^:@/?#\s]+(?:\?([^@#\s]*))?"
)
_DUCKDB: Final = re.compile(r"duckdb://(/[^?#]+)(?:\?([^#\s]*))?")
_HOW: Final = {
    "postgresql": "write postgresql://USER@HOST/DATABASE?schema=SCHEMA, without a password: that "
    "is read from PGPASSWORD or ~/.pgpass",
    "duckdb": "write duckdb:///FOLDER/FILE?schema=SCHEMA, with the whole path",
}
_LISTED: Final = {
    "postgresql": "SELECT relname FROM pg_class WHERE pg_table_is_visible(oid) AND relkind IN "
    "('r', 'p', 'v', 'm', 'f') AND relnamespace <> 'pg_catalog'::regnamespace",
    "duckdb": "SELECT table_name FROM information_schema.tables "
    "WHERE table_schema IN (SELECT unnest(current_schemas(false)))",
}

Query = Callable[[str], pa.RecordBatchReader]


def is_address(location: str | Path) -> bool:
    """Whether a text names a database by its scheme."""
    return isinstance(location, str) and _SCHEME.match(location) is not None


def to_address(location: str | Path) -> str | None:
    """Return the address of a database, or of a path that ends in `.duckdb`; None for others.

    Raises `InputError` for one that is misspelt or holds a password, which is not repeated, and for
    a file that is not there.
    """
    text = str(location)
    if not is_address(location):
        path = Path(location)
        if path.suffix != SUFFIX or path.is_dir():
            return None
        text = f"duckdb://{quote(str(path.absolute()))}"
    kind = _kind(text)
    match = (_POSTGRES if kind == "postgresql" else _DUCKDB).fullmatch(text)
    options = dict(parse_qsl(match[match.re.groups] or "", keep_blank_values=True)) if match else {}
    odd = [
        name
        for name in options
        if "passw" in name.lower()
        or not re.fullmatch("schema" if kind == "duckdb" else "[a-z_]+", name)
    ]
    if match is None or odd:
        raise InputError(f"--input {kind}://...: not an address that is read; {_HOW[kind]}")
    if kind == "duckdb" and not os.path.isfile(unquote(match[1])):
        raise InputError(f"--input {unquote(match[1])}: no such file; check the path")
    return text


def table_path(root: str, name: str) -> str:
    """Return how a message calls a table: a file of a folder, or a table of a database."""
    return f"{root}: table {name}" if is_address(root) else os.path.join(root, name)


def find_tables(address: str, names: Iterable[str]) -> dict[str, str]:
    """Return table -> its name in the database; capitals are not told apart, views count.

    Raises `InputError` where the database cannot be opened, or its driver is missing.
    """
    with open_database(address, InputError) as query:
        there = query(_LISTED[_kind(address)]).read_all().column(0).to_pylist()
    spelled = {name.lower(): name for name in sorted(there)}
    return {name: spelled[name] for name in names if name in spelled}


def column_names(address: str, table: str) -> list[str]:
    """Return the columns of a table."""
    with open_database(address, RunError) as query:
        return list(query(_select(["*"], table, " LIMIT 0")).schema.names)


def read_batches(address: str, table: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a table in blocks of about 16,000 rows or 2 MB.

    Raises `RunError` where the database gives up in between.
    """
    with open_database(address, RunError) as query:
        for batch in query(_select([_quoted(name) for name in columns], table)):
            plain = [getattr(column, "storage", column) for column in batch.columns]
            yield pa.RecordBatch.from_arrays(plain, columns)


def state_of(address: str, tables: Mapping[str, Sequence[str]]) -> tuple[str, int]:
    """Return (what tells the database from a changed one, bytes of it); `tables` -> their columns.

    A file has its size and time of change. Of Postgres each table is read once, on the server, for
    its number of rows and the sum of their hashes; views have no bytes.
    """
    if _kind(address) == "duckdb":
        path = _file(address)
        stats = [os.stat(name) for name in (path, f"{path}.wal") if os.path.exists(name)]
        found = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
        return repr(found), sum(size for size, _ in found)
    states, size = [], 0
    with open_database(address, InputError) as query:
        for table, columns in tables.items():
            row = f"ROW({', '.join(map(_quoted, columns))})::text"
            hashed = f"coalesce(sum(hashtextextended({row}, 0)), 0)::text"
            held = f"pg_relation_size({_literal(_quoted(table))}::regclass)"
            answer = query(_select([f"count(*), {hashed}, {held}"], table)).read_all().to_pylist()
            count, sum_, bytes_ = answer[0].values()
            states.append((table, count, sum_))
            size += bytes_
    return repr(states), size


@contextmanager
def open_database(address: str, failure: type[UserError] | type[RunError]) -> Iterator[Query]:
    """Open a database to ask it in SQL, read-only; `failure` is what its errors become."""
    kind = _kind(address)
    driver, opened = _driver(kind), {"postgresql": _postgres, "duckdb": _duckdb}[kind]
    try:
        with opened(driver, address) as query:
            yield query
    except (driver.Error, pa.ArrowException, OSError) as error:
        said = re.sub(r"^[A-Z_]+: (\[libpq\] )?", "", str(error))
        raise failure(f"--input {address}: {said.strip().rstrip('.')}; check it") from None


@contextmanager
def _duckdb(driver: ModuleType, address: str) -> Iterator[Query]:
    config = {"threads": 1, "memory_limit": MEMORY}
    with driver.connect(_file(address), read_only=True, config=config) as connection:
        # In full: the file of a schema may have its name. A path that is not set lists no schema.
        ((place,),) = connection.execute("SELECT current_database()").fetchall()
        schemas = [f"{_quoted(place)}.{_quoted(name)}" for name in _schemas(address) or ["main"]]
        connection.execute(f"SET search_path = {_literal(','.join(schemas))}")
        yield lambda sql: connection.sql(sql).to_arrow_reader(BLOCK_ROWS)


@contextmanager
def _postgres(driver: ModuleType, address: str) -> Iterator[Query]:
    place, _, options = address.partition("?")
    left = urlencode([pair for pair in parse_qsl(options) if pair[0] != "schema"], quote_via=quote)
    with (
        closing(driver.connect(f"{place}?{left}", autocommit=True)) as connection,
        closing(connection.cursor()) as cursor,
    ):
        cursor.execute("SET default_transaction_read_only = on")
        # A scan that joins another one begins in the middle of the table.
        cursor.execute("SET synchronize_seqscans = off")
        if schemas := _schemas(address):
            cursor.execute(f"SET search_path TO {', '.join(map(_quoted, schemas))}")
        cursor.adbc_statement.set_options(
            **{"adbc.postgresql.batch_size_hint_bytes": str(BLOCK_BYTES)}
        )
        yield partial(_asked, cursor)


def _asked(cursor: Any, sql: str) -> pa.RecordBatchReader:
    cursor.execute(sql)
    return cursor.fetch_record_batch()


def _driver(kind: str) -> ModuleType:
    name = {"postgresql": "adbc_driver_postgresql.dbapi", "duckdb": "duckdb"}[kind]
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0].replace("_", "-")
        raise InputError(
            f"--input {kind}://...: the package {package} is not installed; "
            "pip install 'ehr_ray[omop]'"
        ) from None


def _kind(address: str) -> str:
    return "duckdb" if address.startswith("duckdb") else "postgresql"


def _file(address: str) -> str:
    return unquote(address.removeprefix("duckdb://").partition("?")[0])


def _schemas(address: str) -> list[str]:
    given = parse_qs(address.partition("?")[2]).get("schema", [""])[-1]
    return [name.strip() for name in given.split(",") if name.strip()]


def _select(columns: Sequence[str], table: str, end: str = "") -> str:
    return f"SELECT {', '.join(columns)} FROM {_quoted(table)}{end}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
