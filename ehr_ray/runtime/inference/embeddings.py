"""Embeddings of whole patients, a shard at a time: what `embed` writes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ehr_ray.events.batched import batched
from ehr_ray.runtime.inference.shards import ShardPredictor
from ehr_ray.storage import files
from ehr_ray.train.prediction_tables import list_column
from ehr_ray.train.predictor import BATCH_PATIENTS

EMBEDDINGS = pa.schema(
    [pa.field("subject_id", pa.int64()), pa.field("embedding", pa.list_(pa.float32()))]
)
"""What `embed` writes: a row a patient."""
GROUP_PATIENTS = 16 * BATCH_PATIENTS
"""Patients in a row group of embeddings."""


@dataclass
class ShardEmbedder:
    """The function of one shard of `embed`: a row a patient, with some hundreds in memory."""

    predictor: ShardPredictor

    def __call__(self, job: Mapping[str, Any]) -> int:
        """Write `EMBEDDINGS` of `job["shard"]` to `job["target"]` by rename; return the rows."""
        count = 0
        with (
            files.new_file(Path(job["target"])) as partial,
            pq.ParquetWriter(partial, EMBEDDINGS, **files.CHECKED) as writer,
        ):
            for patients in batched(self.predictor.patients(Path(job["shard"])), GROUP_PATIENTS):
                outputs = self.predictor.predictor.over_patients(patients)
                embedding = torch.cat([batch["embedding"] for batch in outputs])
                ids = pa.array([p.subject_id for p in patients], pa.int64())
                columns = [ids, list_column(embedding)]
                writer.write_table(pa.table(columns, schema=EMBEDDINGS))
                count += len(patients)
        return count
