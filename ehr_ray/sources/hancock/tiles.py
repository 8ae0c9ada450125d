"""Texture features of HANCOCK's tissue cores: an archive of arrays for each marker."""

import re
import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from ehr_ray.errors import InputError
from ehr_ray.sources.parsing.cells import events_table, since_epoch
from ehr_ray.sources.parsing.identifiers import subject_ids
from ehr_ray.sources.parsing.quarantine import Rejects
from ehr_ray.sources.source import Chunk

TILES: Final = re.compile(r"tma_tile_dtr_(\d+)_(\w+)\.npz")
"""Name of a file: the features of a tile, then the marker; an array has several tiles in a row."""


def read_tiles(path: Path, known: set[int]) -> Chunk:
    """Return the texture features of one marker: a code a feature, an event a tile with tissue."""
    match = TILES.fullmatch(path.name)
    assert match is not None
    width, marker = int(match[1]), match[2]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64).reshape(-1) for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: not a readable archive of arrays ({error})") from None
    names = [name for name, array in arrays.items() if array.size and array.size % width == 0]
    who, _, _ = subject_ids(pa.array(names, pa.string()))
    ids, values = [], []
    for one, name in zip(who.tolist(), names, strict=True):
        tiles = arrays[name].reshape(-1, width)
        tiles = tiles[np.isfinite(tiles).all(1) & tiles.any(1)]  # zeros fill a tile that is not
        if one in known:
            ids += [one] * len(tiles)
            values.append(tiles)
    flat = np.concatenate(values).ravel() if values else np.zeros(0)
    codes = pa.array([f"TMA//{marker}//{i:03d}" for i in range(width)], pa.string())
    codes = codes.take(pa.array(np.tile(np.arange(width), len(ids))))
    times, _ = since_epoch(np.full(len(flat), np.nan), 1.0)
    rejects = Rejects()
    for name in sorted(set(arrays) - set(names)):
        rejects.file(f"{path.name}/{name}", f"not a multiple of {width} numbers")
    return Chunk(
        events=events_table(np.repeat(np.array(ids, np.int64), width), times, codes, flat),
        rejects=rejects.table(),
        rows_read=len(arrays),
        files_read=1,
    )
