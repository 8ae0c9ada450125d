"""What a model tells of patients, as Arrow tables: tensors to columns, and back to arrays."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ehr_ray.family import Batch
from ehr_ray.storage import files


def list_column(values: torch.Tensor) -> pa.Array:
    """Return rows of a tensor as an Arrow column: float32 [N], or [N, W] as lists of W."""
    array = values.float().numpy()
    if array.ndim == 1:
        return pa.array(array)
    flat = pa.array(array.reshape(-1))
    offsets = pa.array(np.arange(0, array.size + 1, array.shape[1], dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, flat)


def entries_table(batch: Batch, where: torch.Tensor) -> pa.Table:
    """Return row-wise tensors as a table; `patient` becomes the sample's place in the shard."""
    columns = {}
    for name, values in batch.items():
        if name == "patient":
            columns["sample"] = pa.array(where[values].numpy())
        elif values.ndim == 2:
            columns[name] = list_column(values)
        else:
            columns[name] = pa.array(values.numpy())
    return pa.table(columns)


def read_tables(folders: Iterable[Path], name: str) -> pa.Table | None:
    """Return what the shards wrote under a name, one after the other; None if none did."""
    paths = [folder / f"{name}.parquet" for folder in folders]
    parts = [files.read_parquet(path) for path in paths if path.is_file()]
    return pa.concat_tables(parts) if parts else None


def matrix(table: pa.Table, name: str) -> np.ndarray:
    """Return a list column of equal lengths as float32 [rows, width]."""
    column = table[name].combine_chunks()
    return column.values.to_numpy().reshape(len(table), -1)
