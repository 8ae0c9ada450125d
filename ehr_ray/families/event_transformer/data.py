"""Patient to tokens, and tokens to padded tensors."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ehr_ray.events.normalize import z_score
from ehr_ray.events.options import TokenOptions
from ehr_ray.events.patients import Patient
from ehr_ray.events.tokens import TokenBook
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.family import Batch, Row

_FILL: Mapping[str, tuple[float, type]] = {
    "phrase": (0, np.int64),
    "gap": (-1, np.int64),
    "value": (np.nan, np.float16),
    "minute": (0, np.float64),
}
"""What stands where a patient has no token, and the type of the padded array."""


@functools.lru_cache(maxsize=8)
def token_book(vocabulary: Vocabulary, options: TokenOptions) -> TokenBook:
    """Return the phrases of a vocabulary; made once in each process."""
    return TokenBook(vocabulary, options)


def transform(patient: Patient, config: EventTransformerConfig, vocabulary: Vocabulary) -> Row:
    """Return a patient's tokens, all of them: T phrase ids with gap, value and minute."""
    value = z_score(patient.value, patient.code, vocabulary)
    value = value.clip(-config.clip_value, config.clip_value)
    tokens = token_book(vocabulary, config.token_options).tokens(patient, value)
    return {
        "subject_id": np.array(patient.subject_id),
        "phrase": tokens.phrase,
        "gap": tokens.gap,
        "value": tokens.value.astype(np.float16),
        "minute": tokens.minute,
    }


def collate(rows: Sequence[Row], config: EventTransformerConfig) -> Batch:
    """Return B patients of T tokens, padded at the right to the longest.

    `phrase`, `gap` (-1: none) int64, `value` float32, `minute` float64, `valued`, `mask` bool, all
    [B, T]; `subject_id` [B]. Records longer than `max_length` are cut here to their last tokens
    unless windows are drawn in training. `place` int64 [N], where the tokens that blocks read stand
    in a window of the batch, line by line, an encoder's `cls` before those of each patient.
    """
    keep = config.max_length if config.truncation == "last" else None
    parts = {name: [row[name][-keep:] if keep else row[name] for row in rows] for name in _FILL}
    sizes = np.array([len(part) for part in parts["phrase"]], np.int64)
    mask = np.arange(max(1, int(sizes.max(initial=1)))) < sizes[:, None]
    arrays = {name: _padded(parts[name], mask, *fill) for name, fill in _FILL.items()}
    batch = {name: torch.from_numpy(values) for name, values in {"mask": mask, **arrays}.items()}
    value = batch["value"].float()  # in torch, its isnan in numpy: each is many times slower there
    batch["valued"] = torch.from_numpy(~np.isnan(value.numpy()))
    batch["value"] = value.nan_to_num_(0.0)
    batch["place"] = _places(sizes, mask.shape[1], config)
    batch["subject_id"] = torch.tensor([int(row["subject_id"]) for row in rows])
    return batch


def _places(sizes: npt.NDArray[np.int64], length: int, config: EventTransformerConfig) -> Tensor:
    """Return where the real tokens stand: however windows are drawn, at the left of each line."""
    extra = int(config.has_cls)
    read = np.arange(extra + min(length, config.max_length)) < extra + sizes[:, None]
    return torch.from_numpy(np.flatnonzero(read))


def _padded(
    parts: list[np.ndarray], mask: npt.NDArray[np.bool_], fill: float, dtype: type
) -> np.ndarray:
    """Return the parts as rows of one array, [B, T]; `mask` says where they have something."""
    flat: np.ndarray = np.concatenate(parts, dtype=dtype)
    if flat.size == mask.size:  # as where all records are cut to one length
        return flat.reshape(mask.shape)
    padded: np.ndarray = np.full(mask.shape, fill, dtype)
    padded[mask] = flat
    return padded
