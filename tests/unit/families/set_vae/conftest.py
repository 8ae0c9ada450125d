import dataclasses

import numpy as np
import pytest
import torch

from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.families.set_vae.config import SetVAEConfig
from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.model import SetVAE

NUM_CODES = 12
TINY = SetVAEConfig(
    embedding_width=16, reduced=8, width=16, latent=4, heads=2, inducing=3, sets_per_patient=None
)


@pytest.fixture(scope="session")
def clean_options():
    """The options of a model without perturbations."""
    none = ("p_stale", "p_live", "set_mae_ratio", "small_set_mask_prob")
    noise = ("val_noise_std", "dir_noise_std", "decoder_noise")
    return dict.fromkeys((*none, *noise), 0.0)


@pytest.fixture(scope="session")
def make_config(clean_options):
    """A tiny config: make_config(p_stale=0.1), make_config(clean=True) without perturbations."""

    def make(clean=False, **changes):
        return dataclasses.replace(TINY, **{**(clean_options if clean else {}), **changes})

    return make


@pytest.fixture(scope="session")
def vocabulary():
    codes = tuple(f"C{i:02d}" for i in range(NUM_CODES))
    return Vocabulary(codes, np.ones(NUM_CODES, np.int64), np.zeros(NUM_CODES), np.ones(NUM_CODES))


@pytest.fixture(scope="session")
def make_model(make_config, vocabulary):
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        return SetVAE(make_config(**changes), vocabulary)

    return make


@pytest.fixture(scope="session")
def make_row():
    """A random model-ready row with sets of the given sizes: make_row(7, [3, 0, 5])."""

    def make(subject, sizes, carried=None):
        rng = np.random.default_rng(subject)
        codes = [np.sort(rng.permutation(NUM_CODES)[:size]) for size in sizes]
        total = sum(sizes)
        flags = rng.random(total) < 0.5 if carried is None else np.full(total, carried)
        return {
            "subject_id": np.int64(subject),
            "code": np.concatenate([*codes, []]).astype(np.int32),
            "value": rng.normal(size=total).astype(np.float32),
            "age": np.where(flags, rng.integers(1, 2880, total), 0).astype(np.float32),
            "carried": flags,
            "set_size": np.array(sizes, np.int32),
            "minute": np.arange(len(sizes), dtype=np.float32) * 60,
        }

    return make


@pytest.fixture(scope="session")
def rows(make_row):
    """Patients with few and many sets, small and large ones."""
    return [make_row(11, [4, 6, 9]), make_row(5, [2]), make_row(8, [7, 1, 3, 12, 5])]


@pytest.fixture
def batch(rows, make_config):
    return collate(rows, make_config())
