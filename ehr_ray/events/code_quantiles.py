"""Quantiles of codes, of a sample of their values that is the same wherever shards are read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ehr_ray.events.code_chunks import code_chunks
from ehr_ray.events.vocabulary import QUANTILES

SEEN = pa.schema([pa.field("code", pa.string()), pa.field("num_values", pa.int64())])
"""How many values of a code come in the shards before one, or in the groups before one."""

STRIDES = pa.schema([pa.field("code", pa.string()), pa.field("stride", pa.int64())])
"""Of how many values of a code one is kept for its quantiles."""

SAMPLES = pa.schema([pa.field("code", pa.string()), pa.field("values", pa.list_(pa.float32()))])
"""The values of a shard that are kept, by code."""

FOUND = pa.schema([pa.field("code", pa.string()), pa.field("quantiles", pa.list_(pa.float64()))])
"""The quantiles of a code."""


def sample_values(path: Path, seen: pa.Table, strides: pa.Table) -> pa.Table:
    """Return the `SAMPLES` of a shard: every stride-th value, counted through all shards."""
    names = {code: i for i, code in enumerate(seen["code"].to_pylist())}
    if not names:
        return SAMPLES.empty_table()
    before = seen["num_values"].to_numpy().copy()
    known = dict(zip(*strides.to_pydict().values(), strict=True))
    stride = np.array([known[code] for code in names], np.int64)
    kept: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    for codes, values, _ in code_chunks(path, names):
        finite = np.isfinite(values)
        codes, values = codes[finite], values[finite]
        order = _stable(codes)
        codes, values = codes[order], values[order]
        number = np.bincount(codes, minlength=len(before))
        # The number of a value among all of its code, those of shards before included: what is kept
        # is the same however shards are divided among processes.
        position = np.arange(len(codes)) + (before - np.cumsum(number) + number)[codes]
        take = position % stride[codes] == 0
        kept.append((codes[take], values[take]))
        before += number
    codes, values = (np.concatenate(pieces) for pieces in zip(*kept, strict=True))
    order = _stable(codes)
    there, starts = np.unique(codes[order], return_index=True)
    lists = pa.ListArray.from_arrays(
        pa.array(np.r_[starts, len(codes)], pa.int32()), pa.array(values[order])
    )
    return pa.table([pa.array(list(names)).take(pa.array(there)), lists], schema=SAMPLES)


def summed(seen: pa.Table, before: pa.Table) -> pa.Table:
    """Return `SEEN` with the numbers of its codes in another one added."""
    at = pc.index_in(seen["code"], before["code"].combine_chunks())
    more = before["num_values"].take(at).fill_null(0)
    return seen.set_column(1, SEEN.field(1), pc.add(seen["num_values"], more))


def quantiles_of(samples: Iterable[pa.Table]) -> pa.Table:
    """Return `FOUND` of the `SAMPLES` of all shards, by code."""
    names: dict[str, int] = {}
    codes, values = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for sample in samples:
        local = [names.setdefault(code, len(names)) for code in sample["code"].to_pylist()]
        lists = sample["values"].combine_chunks()
        codes.append(np.repeat(np.array(local, np.int32), lists.value_lengths().to_numpy()))
        values.append(lists.flatten().to_numpy())
    ids = np.concatenate(codes)
    order = _stable(ids)
    kept = np.concatenate(values)[order]
    # In float64: numpy interpolates between two values in the type that they have.
    edges = np.searchsorted(ids[order], np.arange(len(names) + 1)).tolist()
    found = [
        (name, np.quantile(kept[edges[i] : edges[i + 1]].astype(np.float64), QUANTILES).tolist())
        for i, name in sorted(zip(names.values(), names, strict=True), key=lambda pair: pair[1])
    ]
    columns = zip(*found, strict=True) if found else ([], [])
    return pa.table([list(column) for column in columns], schema=FOUND)


def _stable(codes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the order of events by code; numpy sorts numbers of 16 bits several times faster."""
    small = not len(codes) or codes.max() < 1 << 16
    return np.argsort(codes.astype(np.uint16) if small else codes, kind="stable")
