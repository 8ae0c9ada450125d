import dataclasses

import numpy as np
import pytest
import torch

from ehr_ray.events.options import VITALS
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.vitals_vae.config import VitalsVAEConfig
from ehr_ray.families.vitals_vae.model import VitalsVAE

TINY = VitalsVAEConfig(
    first_hour=0,
    last_hour=95,
    latent=6,
    width=8,
    stem=6,
    trend_bins=12,
    lstm_width=8,
    codebook=16,
    code_groups=3,
    code_width=4,
)
CODES = tuple(sorted(vital.codes[0] for vital in VITALS))
MEAN = {"HR": 80.0, "SBP": 120, "DBP": 70, "MAP": 85, "RR": 18, "SPO2": 96, "TEMP": 37}


@pytest.fixture(scope="session")
def make_config():
    def make(**changes):
        return dataclasses.replace(TINY, **changes)

    return make


@pytest.fixture(scope="session")
def vocabulary():
    mean = np.array([MEAN[code] for code in CODES], float)
    return Vocabulary(CODES, np.ones(len(CODES), np.int64), mean, mean / 10)


@pytest.fixture(scope="session")
def make_model(make_config, vocabulary):
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return VitalsVAE(make_config(**changes), vocabulary)

    return make


@pytest.fixture(scope="session")
def make_batch():
    """Grids of random patients: make_batch([7, 9], hours=96, share=0.2)."""

    def make(subjects, hours=96, share=0.2):
        values, masks = [], []
        for subject in subjects:
            rng = np.random.default_rng(subject)
            masks.append(rng.random((hours, 7)) < share)
            level = rng.normal(size=7)
            values.append((level + 0.3 * rng.normal(size=(hours, 7))) * masks[-1])
        return {
            "subject_id": torch.tensor(list(subjects)),
            "value": torch.tensor(np.stack(values), dtype=torch.float32),
            "observed": torch.tensor(np.stack(masks)),
        }

    return make


@pytest.fixture
def batch(make_batch):
    return make_batch([3, 5, 8, 11])
