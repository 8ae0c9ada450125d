"""Patient to the events of its modalities and what became of it; both to a batch."""

from collections.abc import Sequence

import numpy as np
import torch

from ehr_ray.events.modalities import Layout, layout_of
from ehr_ray.events.outcomes import CENSORED, follow, labels_at
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.hcat.config import HCATConfig
from ehr_ray.family import Batch, Row

CLIP = 6.0
"""Largest |z-score| a value enters with."""
MINUTES_PER_DAY = 1440.0


def transform(patient: Patient, config: HCATConfig, vocabulary: Vocabulary) -> Row:
    """Return the patient's features, events up to the landmark, and its outcomes, after it.

    `code` int32 [E] and `value` float32 [E]: z-scores by the statistics of train, 1 for flags.
    Scalars `<outcome>/days` (NaN: not followed), `<outcome>/state` and `<outcome>/stated`, the
    label where the cohort states it without days, as events LABEL//<outcome>//<0 or 1>.
    """
    layout = _layout(vocabulary, config)
    known = patient.static | (patient.minute <= config.landmark_hours * 60)
    column = layout.modality[patient.code] >= 0
    there = known & column & ~(layout.valued[patient.code] & np.isnan(patient.value))
    code, value = patient.code[there], patient.value[there].astype(np.float64)
    z = ((value - vocabulary.location[code]) / vocabulary.scale[code]).clip(-CLIP, CLIP)
    z = np.where(layout.raw[code], value, np.where(layout.valued[code], z, 1.0))
    row = {
        "subject_id": np.array(patient.subject_id),
        "code": code.astype(np.int32),
        "value": z.astype(np.float32),
    }
    # What happens at the landmark itself is an outcome, though measurements of then are known.
    later = ~patient.static & (patient.minute >= config.landmark_hours * 60)
    days = (patient.time[later] - patient.origin) / (MINUTES_PER_DAY * 60e6)
    names = [vocabulary.codes[i] for i in patient.code[later]]
    for outcome in config.outcomes:
        until, state = follow(days, names, outcome)
        row[f"{outcome.name}/days"] = np.array(until, np.float32)
        row[f"{outcome.name}/state"] = np.array(state, np.int8)
        stated = [n[-1] for n in names if n in (f"LABEL//{outcome.name}//{i}" for i in (0, 1))]
        row[f"{outcome.name}/stated"] = np.array(int(stated[0]) if stated else -1, np.int8)
    return row


def collate(rows: Sequence[Row], config: HCATConfig) -> Batch:
    """Return events end to end with the row each is of, and labels, [E] and [B].

    `label` float [B, 2]: 1 for the positive class, 0, -1 where unknown; `days` and `state` [B, 2].
    """
    sizes = [len(row["code"]) for row in rows]
    names = [outcome.name for outcome in config.outcomes]
    days = np.array([[row[f"{n}/days"] for n in names] for row in rows], np.float64)
    state = np.array([[row[f"{n}/state"] for n in names] for row in rows], np.int8)
    stated = np.array([[row[f"{n}/stated"] for n in names] for row in rows], np.int64)
    told = [labels_at(days[:, i], state[:, i], o) for i, o in enumerate(config.outcomes)]
    label = np.where(stated >= 0, stated, np.stack(told, 1))
    return {
        "subject_id": torch.tensor([int(row["subject_id"]) for row in rows]),
        "row": torch.from_numpy(np.repeat(np.arange(len(rows)), sizes)),
        "code": torch.from_numpy(np.concatenate([row["code"] for row in rows])).long(),
        "value": torch.from_numpy(np.concatenate([row["value"] for row in rows])),
        "label": torch.from_numpy(label.astype(np.float32)),
        "days": torch.from_numpy(np.nan_to_num(days, nan=-1.0).astype(np.float32)),
        "state": torch.from_numpy(np.where(np.isnan(days), CENSORED, state)).long(),
    }


_LAYOUTS: dict[int, tuple[Vocabulary, HCATConfig, Layout]] = {}


def _layout(vocabulary: Vocabulary, config: HCATConfig) -> Layout:
    """Return the layout, made once for the vocabulary and codes last asked for."""
    held = _LAYOUTS.get(0)
    if held is None or held[0] is not vocabulary or held[1].codes != config.codes:
        held = _LAYOUTS[0] = (vocabulary, config, layout_of(vocabulary, config.codes))
    return held[2]
