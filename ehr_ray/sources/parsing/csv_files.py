"""CSV files, plain or compressed, read in blocks as text with the line of every row."""

import csv
import gzip
import os
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.quarantine import Rejects

SUFFIXES: Final = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
BLOCK_BYTES: Final = 16 << 20


def csv_columns(path: str) -> list[str]:
    """Return the names in the first line; raises `InputError` where there is none."""
    opener: Any = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            names = next(csv.reader(file, delimiter=_delimiter(path)), [])
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable CSV ({error})") from None
    if not names:
        raise InputError(f"{path}: empty, not even a header")
    return names


def read_csv(
    root: str, name: str, columns: list[str], *, block_bytes: int | None = None
) -> Iterator[tuple[pa.Table, npt.NDArray[np.int64], Rejects]]:
    """Yield (columns as strings, line of each row from 1, malformed rows), a block at a time.

    The reader runs up to 32 blocks ahead, so `block_bytes` decides how much of a long file is held.
    Malformed rows have too many or too few cells; the last piece may hold nothing else. Lines are
    counted in records, so a quoted line break counts once. Raises `pa.ArrowException` or `OSError`
    on a damaged file.
    """
    # Filled, in order of line, by a thread of the reader that runs ahead: only pop from it.
    skipped: list[tuple[int, str]] = []

    def skip(row: Any) -> str:
        wanted, got = row.expected_columns, row.actual_columns
        reason = f"{got} cells where the header has {wanted}: {row.text!r}"
        skipped.append((row.number, reason))
        return "skip"

    path = os.path.join(root, name)
    reader = pa_csv.open_csv(
        path,
        # Threads would leave the numbers of skipped rows unknown.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=block_bytes or BLOCK_BYTES),
        parse_options=pa_csv.ParseOptions(
            delimiter=_delimiter(path),
            newlines_in_values=True,
            ignore_empty_lines=False,
            invalid_row_handler=skip,
        ),
        convert_options=pa_csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
        ),
    )
    line = 2
    with reader:
        for batch in reader:
            ahead = [number for number, _ in skipped]
            candidates = np.arange(line, line + len(batch) + len(ahead))
            lines = np.setdiff1d(candidates, ahead, assume_unique=True)[: len(batch)]
            line = int(lines[-1]) + 1 if len(lines) else line
            yield pa.Table.from_batches([batch]), lines, _pop(skipped, line, name)
        nothing = pa.table({column: pa.array([], pa.string()) for column in columns})
        yield nothing, np.arange(0), _pop(skipped, None, name)


def _pop(skipped: list[tuple[int, str]], before: int | None, name: str) -> Rejects:
    rejects = Rejects()
    while skipped and (before is None or skipped[0][0] < before):
        rejects.row(name, *skipped.pop(0))
    return rejects


def _delimiter(path: str) -> str:
    return "\t" if path.endswith((".tsv", ".tsv.gz")) else ","
