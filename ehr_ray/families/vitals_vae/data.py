"""Patient to observations, observations to the grid of a batch."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ehr_ray.events.blocks import RowStore
from ehr_ray.events.grid import observations, scales, to_grid
from ehr_ray.events.hourly_h5 import Window, write_hourly
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.vitals_vae.config import VitalsVAEConfig
from ehr_ray.family import Batch, Row


def transform(patient: Patient, config: VitalsVAEConfig, vocabulary: Vocabulary) -> Row:
    """Return the vital signs of the window as z-scores, sparse, in time order: E observations.

    The hourly grid is made of them when a batch is: 10 % of its cells are observed, and a cell's
    mean would not be known before its hour is over. `refused` counts values out of range.
    """
    found = observations(
        patient,
        config.vitals,
        vocabulary,
        first_hour=config.first_hour,
        num_hours=config.num_hours,
        origin=config.origin,
    )
    centre, spread = scales(config.vitals, vocabulary)
    z = (found.value - centre[found.vital]) / spread[found.vital]
    return {
        "subject_id": np.array(patient.subject_id),
        "refused": np.array(found.refused),
        "hour": found.hour,
        "vital": found.vital.astype(np.int8),
        "value": z.clip(-config.clip_value, config.clip_value).astype(np.float32),
    }


def measured(store: RowStore) -> NDArray[np.bool_]:
    """Return which patients have a vital sign in the window."""
    return store.sizes("hour") > 0


def remedy(config: VitalsVAEConfig) -> str:
    """Return what to do where nobody has."""
    first = config.vitals[0]
    return (
        f"a vital sign is a code that model.vitals names (of {first.name}: "
        f"{', '.join(first.codes[:3])}): name your cohort's codes there, or map them at ingest"
    )


def collate(rows: Sequence[Row], config: VitalsVAEConfig) -> Batch:
    """Return hourly means `value` [B, H, V], 0 where none, `observed`, and `subject_id` [B]."""
    sizes = [len(row["hour"]) for row in rows]
    patient = np.repeat(np.arange(len(rows)), sizes)
    hour, vital, value = (
        np.concatenate([row[name] for row in rows]) for name in ("hour", "vital", "value")
    )
    shape = (len(rows), config.num_hours, config.num_vitals)
    mean, observed = to_grid(patient, hour, vital, value, shape)
    return {
        "subject_id": torch.tensor([int(row["subject_id"]) for row in rows]),
        "value": torch.from_numpy(mean),
        "observed": torch.from_numpy(observed),
    }


def export(
    patients: Iterable[Patient], config: VitalsVAEConfig, vocabulary: Vocabulary, path: Path
) -> int:
    """Write `hourly_tensors.h5`: values in their units, masks, tiers and times; return patients."""
    window = Window(
        vitals=config.vitals,
        first_hour=config.first_hour,
        num_hours=config.num_hours,
        origin=config.origin,
    )
    return write_hourly(path, patients, window, vocabulary)
