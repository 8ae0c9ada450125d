"""Rows as Arrow record batches, in files and between processes.

A row's arrays have a ragged first axis and fixed further ones. In a batch each is a list column
(the further axes flattened, their sizes in the schema); scalars are plain columns.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from ehr_ray.events.row_index import LENGTH

Row = Mapping[str, np.ndarray]
CHECKSUM: Final = b"crc32"
"""Key of a batch's checksum in its metadata: Arrow files have none of their own."""


def to_batch(rows: Sequence[Row]) -> pa.RecordBatch:
    """Return rows, at least one, all of the arrays that the first one has."""
    arrays, fields = [], []
    for name, example in rows[0].items():
        values = [np.asarray(row[name]) for row in rows]
        if np.ndim(example) == 0:
            array, metadata = pa.array(np.stack(values)), None
        else:
            offsets = np.cumsum([0] + [v.size for v in values])
            flat = np.concatenate([v.reshape(-1) for v in values])
            # Booleans are bits in Arrow, which numpy cannot view: bytes are mapped as they are.
            metadata = {"shape": json.dumps(list(np.shape(example)[1:]))}
            if flat.dtype == bool:
                flat, metadata["bool"] = flat.view(np.uint8), ""
            array = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(flat))
        arrays.append(array)
        fields.append(pa.field(name, array.type, metadata=metadata))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


class Column:
    """One Arrow column as numpy: scalars, or offsets into flat values."""

    def __init__(self, array: pa.Array, field: pa.Field) -> None:
        self.scalar = not pa.types.is_large_list(array.type)
        if self.scalar:
            self.values = array.to_numpy(zero_copy_only=False)
            return
        metadata = field.metadata or {}
        self.shape: list[int] = json.loads(metadata.get(b"shape", b"[]"))
        self.offsets = array.offsets.to_numpy()
        self.values = array.values.to_numpy(zero_copy_only=False)
        self.values = self.values.view(bool) if b"bool" in metadata else self.values

    def get(self, index: int) -> np.ndarray:
        """Return the array of a row, a view of the batch."""
        if self.scalar:
            return np.asarray(self.values[index])
        flat = self.values[self.offsets[index] : self.offsets[index + 1]]
        return flat.reshape(-1, *self.shape) if self.shape else flat


def columns_of(batch: pa.RecordBatch) -> dict[str, Column]:
    """Return the columns of a batch by name."""
    return {
        name: Column(batch.column(i), batch.schema.field(i))
        for i, name in enumerate(batch.schema.names)
    }


def checksum_of(batch: pa.RecordBatch) -> bytes:
    """Return the CRC-32 of a batch's values, in hexadecimal digits."""
    found = 0
    for column in batch.columns:
        lists = pa.types.is_large_list(column.type)
        for part in (column.offsets, column.values) if lists else (column,):
            values = part.to_numpy(zero_copy_only=False)
            # Texts come as objects, whose bytes are addresses; offsets and numbers as they lie.
            if values.dtype == object:
                values = np.frombuffer(repr(part.to_pylist()).encode(), np.uint8)
            if len(values):
                found = zlib.crc32(np.ascontiguousarray(values).view(np.uint8).data, found)
    return f"{found:08x}".encode()


def known_of(batch: pa.RecordBatch) -> pa.Table:
    """Return scalars by name, and as `#name` the number of elements of each array, a row a row."""
    columns: dict[str, Any] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        lists = pa.types.is_large_list(column.type)
        key, values = (f"{LENGTH}{name}", np.diff(column.offsets)) if lists else (name, column)
        columns[key] = values
    return pa.table(columns)


def to_bytes(rows: Sequence[Row]) -> bytes:
    """Return rows, at least one, as they would be written to a block."""
    return _stream(to_batch(rows))


def from_bytes(data: bytes) -> list[dict[str, np.ndarray]]:
    """Return the rows of `to_bytes`, as `BlockStore` gives them."""
    (batch,) = pa.ipc.open_stream(data)
    columns = columns_of(batch)
    return [
        {name: column.get(place) for name, column in columns.items()}
        for place in range(batch.num_rows)
    ]


def as_stream(tables: Iterable[pa.Table]) -> bytes:
    """Return tables, one after the other, as one Arrow stream."""
    parts = list(tables)
    whole = pa.concat_tables(parts) if parts else pa.table({})
    return _stream(*whole.to_batches(), schema=whole.schema)


def _stream(*batches: pa.RecordBatch, schema: pa.Schema | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema if schema is None else schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    data: bytes = sink.getvalue().to_pybytes()
    return data
