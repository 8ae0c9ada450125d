import dataclasses

import pytest
import torch

from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.sequence.config import SeqSetVAEConfig
from ehr_ray.families.set_vae.sequence.model import SeqSetVAE

TINY = SeqSetVAEConfig(
    embedding_width=16,
    reduced=8,
    width=16,
    latent=4,
    heads=2,
    inducing=3,
    memory=4,
    prior_width=8,
    prior_layers=2,
    prior_heads=2,
    decode_sets=None,
)


@pytest.fixture(scope="session")
def make_config(clean_options):
    """A tiny config: make_config(poe="gated"), make_config(clean=True) without perturbations."""

    def make(clean=False, **changes):
        return dataclasses.replace(TINY, **{**(clean_options if clean else {}), **changes})

    return make


@pytest.fixture(scope="session")
def make_model(make_config, vocabulary):
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        model = SeqSetVAE(make_config(**changes), vocabulary)
        with torch.no_grad():  # it starts at an expectation that hardly depends on the past
            model.prior.expect.out.weight.mul_(100)
        return model

    return make


@pytest.fixture(scope="session")
def made_batch(make_config):
    """Collate rows: made_batch(row, row, ...)."""
    return lambda *rows: collate(rows, make_config())


@pytest.fixture(scope="session")
def long_row(make_row):
    """A stay of 300 sets of one to three tokens."""
    return make_row(77, [1 + i % 3 for i in range(300)])
