import pytest

from ehr_ray.errors import ConfigError
from ehr_ray.experiment import parse

DOCUMENT = {
    "model_type": "multiscale_conv1d",
    "latent_dim": 32,
    "base_channels": 64,
    "scales": [3, 15, 63, 255],
    "beta": 0.5,
    "beta_warmup_epochs": 30,
    "cyclical_period": 40,
    "free_bits": 2.0,
    "epochs": 150,
    "patience": 30,
}


def read(**changes):
    return parse({"vae": {**DOCUMENT, **changes}, "data": {"cohort": "c"}})


def test_the_section_of_the_document_is_read_as_ours():
    found = read()
    assert (found.family, found.model.arch, found.model.latent) == ("vitals_vae", "conv", 32)
    assert (found.model.width, len(found.model.scales)) == (64, 4)
    beta = found.schedules["beta"]
    assert (beta.kind, beta.end, beta.epochs, beta.ramp_ratio) == ("cycle", 0.5, 40, 0.75)
    assert found.schedules["free_bits"].value == 2.0
    assert (found.train.max_epochs, found.train.patience) == (150, 30)


def test_scales_are_the_branches_that_begin_with_them():
    assert [scale.name for scale in read(scales=[15, 255]).model.scales] == ["hourly", "multiday"]
    with pytest.raises(ConfigError, match=r"vae\.scales: no branch begins with kernel 7; "):
        read(scales=[7])


def test_keys_of_ours_beside_the_section_win():
    raw = {"vae": DOCUMENT, "data": {"cohort": "c"}, "train": {"patience": 5}, "name": "mine"}
    found = parse(raw)
    assert (found.name, found.train.patience, found.train.max_epochs) == ("mine", 5, 150)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dims": 3}, r"vae\.latent_dims: unknown key; did you mean latent_dim\?"),
        ({"model_type": "gan"}, "vae.model_type: 'gan' is none of multiscale_conv1d, lstm"),
    ],
)
def test_what_is_not_known_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)
