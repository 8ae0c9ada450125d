"""Codes and values of a shard, chunk by chunk: what statistics of codes are made of."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import as_float32
from ehr_ray.storage import files, in_place

CHUNK_ROWS = 1 << 19
"""Rows of which moments are taken at a time."""
REMEDY = "ingest the cohort again"


def code_chunks(
    path: Path, names: dict[str, int], beside: Sequence[str] = ()
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], pa.Table]]:
    """Yield (codes, values, table) chunk by chunk, the first two a number an event.

    A code's id is its place in order of first appearance; extends `names`. The table has the
    columns named `beside`, where the shard has them. One that is in its store alone is read there.
    """
    with files.reads(path, REMEDY), contextlib.ExitStack() as opened:
        try:
            # Codes as the numbers Parquet has of them: a text an event is not made.
            file = opened.enter_context(in_place.parquet(path, REMEDY, read_dictionary=["code"]))
        except KeyError:
            raise InputError(f"{path}: no column 'code'; {REMEDY}") from None
        there = file.schema_arrow.names
        valued = "numeric_value" in there
        columns = [*beside, "code", *(["numeric_value"] if valued else [])]
        if missing := {*columns} - {"time", *there}:
            raise InputError(f"{path}: no column {missing.pop()!r}; {REMEDY}")
        for batches in _chunks(file, columns):
            ids = np.concatenate([_numbered(batch["code"], names) for batch in batches])
            table = pa.Table.from_batches(batches).drop_columns("code").combine_chunks()
            none = np.full(len(ids), np.nan, np.float32)
            yield ids, as_float32(table["numeric_value"]) if valued else none, table


def _chunks(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[list[pa.RecordBatch]]:
    """Yield the batches of `CHUNK_ROWS` rows at a time; dictionaries end with each row group."""
    waiting: list[pa.RecordBatch] = []
    room = CHUNK_ROWS
    for batch in file.iter_batches(CHUNK_ROWS, columns=columns):
        while len(batch):
            waiting.append(batch.slice(0, room))
            batch = batch.slice(room)
            room -= len(waiting[-1])
            if not room:
                yield waiting
                waiting, room = [], CHUNK_ROWS
    if waiting:
        yield waiting


def _numbered(column: pa.Array, names: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return the id of each code, after adding those that are new to `names`."""
    encoded = column.dictionary_encode()  # which one with a dictionary is already
    at = encoded.indices.to_numpy()
    words = encoded.dictionary.to_pylist()
    local = np.full(len(words), -1, np.int64)
    # A dictionary may have words that no row of this piece uses: these get no id.
    for place in np.flatnonzero(np.bincount(at, minlength=len(words))).tolist():
        local[place] = names.setdefault(words[place], len(names))
    return local[at]
