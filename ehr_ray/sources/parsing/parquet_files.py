"""Large Parquet files, read by ranges of row groups."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.errors import AwayError, InputError
from ehr_ray.sources.parsing.csv_files import refuse_repeats
from ehr_ray.sources.source import CHUNK_ROWS, Unit
from ehr_ray.storage import files, in_place
from ehr_ray.storage.paths import is_outlined
from ehr_ray.storage.transfers import at_once

READ_ERRORS = (pa.ArrowException, OSError)


def check_damage(path: str, error: Exception) -> None:
    """Raise AwayError where a disk or a share failed: that is no fault of the file.

    What is damaged is refused, counted and staged; what is away is there at the next try.
    """
    for each in (error, error.__cause__):
        if isinstance(each, OSError) and each.errno is not None:
            reason = each.strerror or str(each)
            raise AwayError(f"{path}: {reason}; mend that and run the same command again")


"""What a damaged or foreign file raises."""


def split_row_groups(unit: Unit) -> list[Unit]:
    """Divide a unit of one file into units of about 1,000,000 rows; a damaged file stays whole.

    Raises as `in_place.raw_footer` where a store refuses the file.
    """
    try:
        metadata = in_place.raw_footer(os.path.join(unit.root, unit.files[0]))
    except READ_ERRORS:
        return [unit]
    found: list[Unit] = []
    start = rows = 0
    for i in range(metadata.num_row_groups):
        rows += metadata.row_group(i).num_rows
        if rows >= CHUNK_ROWS or i == metadata.num_row_groups - 1:
            found.append(replace(unit, start=start, stop=i + 1))
            start, rows = i + 1, 0
    return found or [unit]


def in_order(divide: Callable[[Unit], list[Unit]], units: Sequence[Unit]) -> list[Unit]:
    """Return what a function divides units of one file into; several files of a store at once."""
    stored = bool(units) and is_outlined(units[0].root)
    divided = at_once(divide, units) if stored else map(divide, units)
    return [*itertools.chain.from_iterable(divided)]


def count_rows(unit: Unit) -> int:
    """Return the rows of a unit, 0 where not even that can be read."""
    groups = range(unit.start, unit.stop) if unit.stop else None
    return rows_in(os.path.join(unit.root, unit.files[0]), groups)


def rows_in(path: str, groups: range | None = None) -> int:
    """Return the rows of a file's row groups, None for all; 0 where not even that can be read."""
    try:
        metadata = pq.read_metadata(path)
    except READ_ERRORS:
        return 0
    chosen = range(metadata.num_row_groups) if groups is None else groups
    return sum(metadata.row_group(i).num_rows for i in chosen)


def read_row_groups(
    unit: Unit, needed: list[str], optional: tuple[str, ...] = ()
) -> Iterator[tuple[int, pa.Table]]:
    """Yield (rows of the file before it, table) for a unit, about 1,000,000 rows at a time.

    Raises `InputError` where a needed column is missing, and one of `READ_ERRORS` where the file
    cannot be read.
    """
    file = files.open_parquet(os.path.join(unit.root, unit.files[0]))
    names = file.schema_arrow.names
    refuse_repeats(unit.files[0], names)
    for name in needed:
        if name not in names:
            raise InputError(f"{unit.files[0]}: no column {name}; it has {', '.join(names)}")
    columns = [*needed, *(name for name in optional if name in names)]
    first = sum(file.metadata.row_group(i).num_rows for i in range(unit.start))
    groups = list(range(unit.start, unit.stop or file.metadata.num_row_groups))
    for batch in file.iter_batches(CHUNK_ROWS, row_groups=groups, columns=columns):
        yield first, pa.Table.from_batches([batch])
        first += len(batch)
