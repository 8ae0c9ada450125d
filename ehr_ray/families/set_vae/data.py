"""Patient to sets, and sets to padded tensors."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from ehr_ray.events.carry import PatientSets, carry_forward
from ehr_ray.events.normalize import z_score
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.set_vae.config import SetConfig
from ehr_ray.family import Batch, Row


def transform(patient: Patient, config: SetConfig, vocabulary: Vocabulary) -> Row:
    """Carry values forward and scale them: T tokens in S sets, by contract of LVCF."""
    always = np.zeros(len(vocabulary), bool)
    ids = vocabulary.encode(config.always_carry)
    always[ids[ids >= 0]] = True
    tokens = carry_forward(
        patient.minute,
        patient.code,
        patient.value,
        patient.static,
        window=config.carry_minutes,
        always=always,
    )
    value = z_score(tokens.value, tokens.code, vocabulary)
    return row_of_sets(PatientSets(patient.subject_id, replace(tokens, value=value)), config)


def row_of_sets(patient: PatientSets, config: SetConfig) -> Row:
    """Return T tokens in S sets, their values clipped.

    A patient without events has one set without tokens, so that every patient has an embedding.
    """
    tokens, value = patient.tokens, patient.tokens.value
    if config.clip_value is not None:
        value = value.clip(-config.clip_value, config.clip_value)
    sizes = np.bincount(tokens.set_index, minlength=len(tokens.minute))
    empty = len(sizes) == 0
    return {
        "subject_id": np.array(patient.subject_id),
        "code": tokens.code,
        "value": value,
        "age": tokens.age.astype(np.float32),
        "carried": tokens.is_carry,
        "set_size": np.zeros(1, np.int32) if empty else sizes.astype(np.int32),
        "minute": np.zeros(1) if empty else tokens.minute,
    }


def collate(rows: Sequence[Row], config: SetConfig) -> Batch:  # noqa: ARG001
    """Return all sets of the patients, padded to the largest: M sets, N tokens, B patients.

    `code`, `value`, `age`, `carried`, `mask` [M, N]; `set_index`, `patient`, `minute` [M] (sets
    lie patient after patient); `num_sets`, `subject_id` [B].
    """
    sizes = np.concatenate([row["set_size"] for row in rows]).astype(np.int64)
    num_sets = np.array([len(row["set_size"]) for row in rows], np.int64)
    patient = np.repeat(np.arange(len(rows)), num_sets)
    first = np.cumsum(num_sets) - num_sets
    width = max(1, int(sizes.max()))
    mask = np.arange(width) < sizes[:, None]
    padded = {"mask": mask}
    for name in ("code", "value", "age", "carried"):
        flat = np.concatenate([row[name] for row in rows])
        padded[name] = np.zeros(mask.shape, flat.dtype)
        padded[name][mask] = flat
    batch = {name: torch.from_numpy(array) for name, array in padded.items()}
    batch["code"] = batch["code"].long()
    batch["carried"] = batch["carried"].bool()
    batch["patient"] = torch.from_numpy(patient)
    batch["set_index"] = torch.from_numpy(np.arange(len(sizes)) - first[patient])
    batch["minute"] = torch.from_numpy(np.concatenate([row["minute"] for row in rows]))
    batch["num_sets"] = torch.from_numpy(num_sets)
    batch["subject_id"] = torch.tensor([int(row["subject_id"]) for row in rows])
    return batch
