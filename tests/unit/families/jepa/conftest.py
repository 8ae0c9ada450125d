import dataclasses

import numpy as np
import pytest
import torch

from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.jepa.config import JEPAConfig
from ehr_ray.families.jepa.data import collate, transform
from ehr_ray.families.jepa.model import JEPA

NUM_CODES = 6
HOUR = 60 * 60_000_000
STATIC = np.iinfo(np.int64).min
TINY = JEPAConfig(width=16, depth=1, heads=2, predictor_width=8, predictor_depth=1)


@pytest.fixture(scope="session")
def make_config():
    """A tiny config: make_config(mask="future")."""
    return lambda **changes: dataclasses.replace(TINY, **changes)


@pytest.fixture(scope="session")
def vocabulary():
    """Codes C0 to C5; the last has no values."""
    codes = tuple(f"C{i}" for i in range(NUM_CODES))
    zero = np.zeros(NUM_CODES)
    quantiles = np.tile(np.array([-2.3, -1.6, -0.6745, 0.0, 0.6745, 1.6, 2.3]), (NUM_CODES, 1))
    quantiles[-1] = np.nan
    return Vocabulary(codes, np.ones(NUM_CODES, np.int64), zero, zero + 1, quantiles)


@pytest.fixture(scope="session")
def make_patient():
    """A patient with 2 events in each of so many hours, and one static value."""

    def make(subject, hours):
        rng = np.random.default_rng(subject)
        time = np.repeat(np.arange(hours), 2) * HOUR
        code = np.concatenate([[0], rng.integers(1, NUM_CODES, 2 * hours)]).astype(np.int32)
        value = rng.normal(size=2 * hours + 1).astype(np.float32)
        time = np.concatenate([[STATIC], time]).astype(np.int64)
        return Patient(subject, 0, time, code, value, np.zeros(1, np.int64))

    return make


@pytest.fixture(scope="session")
def make_batch(make_patient, vocabulary):
    """A batch of patients with so many hours each: make_batch([20, 7, 1])."""

    def make(hours, config=TINY):
        patients = [make_patient(10 + i, n) for i, n in enumerate(hours)]
        return collate([transform(p, config, vocabulary) for p in patients], config)

    return make


@pytest.fixture(scope="session")
def make_model(make_config, vocabulary):
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return JEPA(make_config(**changes), vocabulary)

    return make
