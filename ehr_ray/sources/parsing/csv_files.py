"""CSV files, plain or compressed, read in blocks as text with the line of every row."""

import codecs
import contextlib
import csv
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from ehr_ray.errors import AwayError, InputError
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.source import Unit
from ehr_ray.storage import in_place

SUFFIXES: Final = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
BLOCK_BYTES: Final = 16 << 20
PIECE_CODEC: Final = "zstd"
"""Of unpacked lines, at Arrow's own level 1."""
_LINE_BREAK: Final = ord("\n")


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written.

    Args:
        delimiter: one character; None is a tab in `.tsv` files and else a comma.
        encoding: as Python calls it.
        quoted: whether a cell may stand in quotes; else a quote is a letter.
    """

    delimiter: str | None = None
    encoding: str = "utf-8"
    quoted: bool = True

    def __post_init__(self) -> None:
        """Refuse what no file is written in."""
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise InputError(f"--delimiter {self.delimiter!r}: not one character, such as ';'")
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise InputError(
                f"--encoding {self.encoding}: not known; use utf-8, latin-1, cp1252, utf-16"
            ) from None

    def between(self, path: str) -> str:
        """Return what stands between the cells of a file."""
        return self.delimiter or ("\t" if path.lower().endswith((".tsv", ".tsv.gz")) else ",")

    @contextlib.contextmanager
    def open(self, path: str) -> Iterator[Any]:
        """Open a file as text, without the mark that some programs put first."""
        opener: Any = gzip.open if path.lower().endswith(".gz") else io.TextIOWrapper
        how = {"mode": "rt"} if path.lower().endswith(".gz") else {}
        utf8 = codecs.lookup(self.encoding).name == "utf-8"
        encoding = "utf-8-sig" if utf8 else self.encoding
        with (
            in_place.binary(path) as stored,
            opener(stored, encoding=encoding, newline="", **how) as file,
        ):
            try:
                yield file
            except gzip.BadGzipFile as error:  # an OSError, as if its store had failed
                raise EOFError(str(error)) from error


COMMON: Final = Dialect()


def csv_columns(path: str, dialect: Dialect = COMMON) -> list[str]:
    """Return the names in the first line.

    Raises `InputError` where there is none, or where one is there twice.
    """
    try:
        with dialect.open(path) as file:
            names = next(csv.reader(file, delimiter=dialect.between(path)), [])
    except (OSError, EOFError, zlib.error, UnicodeError, csv.Error) as error:
        hint = encoding_hint(error)
        away = isinstance(error, OSError) and error.errno is not None
        kind = AwayError if away else InputError
        raise kind(f"{path}: not a readable CSV ({error}){hint}") from None
    if not names:
        raise InputError(f"{path}: empty, not even a header")
    refuse_repeats(path, names)
    return names


def refuse_repeats(path: str, names: Sequence[str]) -> None:
    """Raise `InputError` where two columns have one name: which of them is meant?"""
    for name in names:
        if name and names.count(name) > 1:
            raise InputError(f"{path}: two columns are called {name}; rename or remove one")


def listed(names: Sequence[str]) -> str:
    """Return names of columns for a message; those with blanks around them in quotes."""
    return ", ".join(name if name == name.strip() else repr(name) for name in names)


def encoding_hint(error: object) -> str:
    """Return what to say after an error that another encoding may end, else nothing."""
    wrong = isinstance(error, UnicodeError) or "UTF8" in str(error)
    return "; if it is not UTF-8, say which by --encoding, such as latin-1" if wrong else ""


@dataclass(frozen=True)
class Lines:
    """The lines of a file that are read: all, or a range of them; of Parquet, the row groups.

    Args:
        start: the byte that the first of them begins at, or the first row group.
        stop: one past the last byte, or row group; 0 is the end of the file.
        first: the line that begins at `start`, from 1, which is the header.
        piece: the file that has them, and nothing else, if the file itself is compressed, of whose
            text `start` and `stop` are then bytes.
    """

    start: int = 0
    stop: int = 0
    first: int = 1
    piece: str = ""


ALL_LINES: Final = Lines()


def lines_of(unit: Unit) -> Lines:
    """Return the lines of its file that a unit is."""
    return Lines(unit.start, unit.stop, unit.line, unit.piece)


def open_piece(path: str) -> pa.NativeFile:
    """Open lines that were unpacked of a compressed file (`csv_ranges.unpack`)."""
    return pa.CompressedInputStream(pa.OSFile(path), PIECE_CODEC)


def count_rows(path: str, part: Lines = ALL_LINES) -> int:
    """Return the lines of a file but its header, as far as it can be read."""
    opener: Any = gzip.open if path.lower().endswith(".gz") else open
    lines, at = 0, part.start
    try:
        with (
            io.BufferedReader(open_piece(part.piece)) if part.piece else opener(path, "rb") as file
        ):
            if not part.piece:
                file.seek(part.start)
            for line in file:
                at += len(line)
                if part.stop and at > part.stop:
                    break
                lines += bool(line.strip())
    except (OSError, EOFError, zlib.error):
        pass
    return max(lines - (part.start == 0), 0)


def read_csv(
    root: str,
    name: str,
    columns: list[str],
    *,
    block_bytes: int | None = None,
    dialect: Dialect = COMMON,
    one_line: bool = False,
    part: Lines = ALL_LINES,
) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64], Rejects]]:
    """Yield (columns as strings, line of each row from 1, malformed rows), a block at a time.

    The reader runs up to 32 blocks ahead, so `block_bytes` decides how much of a long file is held.
    Malformed rows have too many or too few cells or, with `one_line`, a line break within a cell,
    as a quote that is never closed gives; each line within is refused with them. The last piece
    may hold nothing else. Lines are counted in records, so a quoted line break counts once. Of a
    `part` only its rows are read, with the lines that they have in the whole file. Raises
    `pa.ArrowException` or `OSError` on a damaged file.
    """
    # Filled, in order of line, by a thread of the reader that runs ahead: only pop from it.
    skipped: list[tuple[int, str, str]] = []

    def skip(row: Any) -> str:
        wanted, got = row.expected_columns, row.actual_columns
        reason = f"{got} cells where the header has {wanted}: {row.text!r}"
        skipped.append((row.number + part.first - 1, reason, row.text))
        return "skip"

    line = part.first + (part.start == 0)
    path, block_bytes = os.path.join(root, name), block_bytes or BLOCK_BYTES
    with _text_reader(path, columns, dialect, part, block_bytes, skip) as reader:
        for batch in reader:
            ahead = [number for number, *_ in skipped]
            lines = np.arange(line, line + len(batch) + len(ahead))
            if ahead:
                lines = np.setdiff1d(lines, ahead, assume_unique=True)[: len(batch)]
            line = int(lines[-1]) + 1 if len(lines) else line
            table, rejects = pa.Table.from_batches([batch]), _pop(skipped, line, name)
            if one_line:
                broken = _broken(table)
                for i in np.flatnonzero(broken):
                    text = "".join(filter(None, table.slice(int(i), 1).to_pylist()[0].values()))
                    _refuse_lines(rejects, name, int(lines[i]), "a line break in a cell", text)
                if broken.any():
                    table, lines = table.filter(pa.array(~broken)), lines[~broken]
            yield table, lines, rejects
        nothing = pa.table({column: pa.array([], pa.string()) for column in columns})
        yield nothing, np.arange(0), _pop(skipped, None, name)


def _text_reader(
    path: str,
    columns: list[str],
    dialect: Dialect,
    part: Lines,
    block_bytes: int,
    skip: Callable[[Any], str],
) -> pa_csv.CSVStreamingReader:
    """Return Arrow's reader of some columns as text; `skip` is told of each malformed row."""
    source = path
    if part.piece:
        source = open_piece(part.piece)
    elif part != ALL_LINES:
        source = pa.OSFile(path).get_stream(part.start, _size(path, part))
    elif path.lower().endswith(".gz") and not path.endswith(".gz"):  # which Arrow does not know
        source = pa.CompressedInputStream(pa.OSFile(path), "gzip")
    return pa_csv.open_csv(
        source,
        # Threads would leave the numbers of skipped rows unknown.
        read_options=pa_csv.ReadOptions(
            use_threads=False,
            block_size=block_bytes,
            encoding=dialect.encoding,
            column_names=csv_columns(path, dialect) if part.start else None,
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=dialect.between(path),
            quote_char='"' if dialect.quoted else False,
            newlines_in_values=True,
            ignore_empty_lines=False,
            invalid_row_handler=skip,
        ),
        convert_options=pa_csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
        ),
    )


def _size(path: str, part: Lines) -> int:
    return (part.stop or os.path.getsize(path)) - part.start


def _pop(skipped: list[tuple[int, str, str]], before: int | None, name: str) -> Rejects:
    rejects = Rejects()
    while skipped and (before is None or skipped[0][0] < before):
        line, reason, text = skipped.pop(0)
        _refuse_lines(rejects, name, line, reason, text)
    return rejects


def _refuse_lines(rejects: Rejects, name: str, line: int, reason: str, text: str) -> None:
    """Refuse a row, and with it each further line of the file that it swallowed."""
    rejects.row(name, line, reason)
    for _ in text.rstrip("\n").splitlines()[1:]:
        rejects.row(name, line, "swallowed by the row before: is a quote not closed?")


def _broken(table: pa.Table) -> npt.NDArray[np.bool_]:
    broken = np.zeros(len(table), bool)
    for column in table.columns:
        # Looking for the byte in the column as a whole is much faster than in each of its cells.
        if any(_has_line_break(chunk) for chunk in column.chunks):
            found = pc.match_substring(column, "\n").fill_null(False)
            broken |= found.to_numpy()
    return broken


def _has_line_break(column: pa.StringArray) -> bool:
    content = column.buffers()[2]
    return content is not None and bool((np.frombuffer(content, np.uint8) == _LINE_BREAK).any())


def whole_csv(path: str, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Return the rows of a small CSV file.

    Raises `InputError` where it has none, or not all columns, or one twice, and where a row has
    more cells than the header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            refuse_repeats(path, list(reader.fieldnames or ()))
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV ({error})") from None
    missing = [name for name in needed if rows and name not in rows[0]]
    if missing or not rows:
        what = (
            f"no column {missing[0]}; it has {', '.join(map(str, rows[0]))}" if missing else "empty"
        )
        raise InputError(f"{path}: {what} (columns {', '.join(needed)} are needed)")
    for number, row in enumerate(rows, start=1):
        if "".join(row.get(None) or ()).strip():
            raise InputError(
                f"{path}: row {number} has more cells than the header; put one with a comma in "
                "quotes"
            )
    return rows
