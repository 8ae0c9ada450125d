import numpy as np
import pytest
import torch

from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import QUANTILES, Vocabulary
from ehr_ray.families.event_transformer.config import EventTransformerConfig
from ehr_ray.families.event_transformer.family import FAMILY

MINUTE = 60_000_000
TINY = {
    "text_model": "hashing",
    "embedding_dim": 16,
    "model_dim": 16,
    "n_heads": 2,
    "n_layers": 2,
    "dropout": 0.0,
}


@pytest.fixture(scope="session")
def vocabulary():
    codes = ("HR", "Lactate", "RASH")
    quantiles = np.stack([100 * np.array(QUANTILES), 10 * np.array(QUANTILES), np.full(7, np.nan)])
    return Vocabulary(codes, np.ones(3, np.int64), np.array([50.0, 5, 0]), np.ones(3), quantiles)


@pytest.fixture(scope="session")
def make_patient():
    """A patient of so many events, an hour apart but for the first two."""

    def make(length, subject=1, seed=0):
        rng = np.random.default_rng(seed)
        code = rng.integers(0, 3, length).astype(np.int32)
        value = np.where(code < 2, rng.uniform(0, 10, length), np.nan).astype(np.float32)
        time = np.maximum(np.arange(length) - 1, 0) * 60 * MINUTE
        return Patient(subject, 0, time, code, value)

    return make


@pytest.fixture(scope="session")
def make_batch(vocabulary, make_patient):
    def make(lengths, config, first=1):
        patients = [make_patient(n, first + i, first + i) for i, n in enumerate(lengths)]
        rows = [FAMILY.transform(patient, config, vocabulary) for patient in patients]
        return FAMILY.collate(rows, config)

    return make


@pytest.fixture(scope="session")
def make_model(vocabulary):
    def make(**changes):
        torch.manual_seed(0)
        return FAMILY.build(EventTransformerConfig(**{**TINY, **changes}), vocabulary)

    return make
