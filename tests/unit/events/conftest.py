from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ehr_ray.events import code_chunks
from ehr_ray.events.schema import EVENTS


@pytest.fixture(scope="session")
def write():
    """Write events of subjects 0, 1, ... to a shard: write(path, codes, values) gives its path."""

    def shard(path, codes, values):
        count = len(codes)
        columns = {"subject_id": np.arange(count), "time": np.zeros(count, "datetime64[us]")}
        columns |= {
            "code": pa.array(codes, pa.string()),
            "numeric_value": pa.array(values, pa.float32()),
        }
        pq.write_table(pa.table(columns, schema=EVENTS), path, row_group_size=7)
        return path

    return shard


@pytest.fixture(scope="session")
def in_chunks():
    """Have shards be read by so many rows at a time, in a context: in_chunks(rows)."""

    @contextmanager
    def reading(rows):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(code_chunks, "CHUNK_ROWS", rows)
            yield

    return reading
