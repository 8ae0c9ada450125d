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


def test_what_the_document_says_beside_its_section_holds():
    found = read()
    assert (found.data.batch_size, read(batch_size=8).data.batch_size) == (64, 8)
    assert (found.train.lr, found.train.lr_schedule) == (1e-3, "cosine")


def test_the_end_of_a_cycle_is_that_of_beta():
    """The encoder is held while beta is whole, not in the middle of its rise."""
    shares = {period: read(cyclical_period=period).schedules for period in (40, 60)}
    for period, schedules in shares.items():
        assert schedules["mean_share"].period(10) == schedules["beta"].period(10) == 10 * period
        assert schedules["mean_share"].at(10 * period - 1, 10) == 1.0
        assert schedules["beta"].at(10 * period - 1, 10) == 0.5


def test_the_keys_of_the_objective_and_of_the_plan_reach_it():
    found = read(latent_dim=16, base_channels=32, beta=0.3, free_bits=0.5, epochs=7, patience=2)
    assert (found.model.latent, found.model.width) == (16, 32)
    assert (found.schedules["beta"].end, found.schedules["free_bits"].value) == (0.3, 0.5)
    assert (found.train.max_epochs, found.train.patience) == (7, 2)
    beta = read(beta_warmup_epochs=10).schedules["beta"]
    assert [beta.at(100 * epoch, 100) for epoch in (0, 5, 10, 39, 40)] == [0, 0.25, 0.5, 0.5, 0]


def test_the_published_baseline_is_the_recurrent_one():
    assert read(model_type="lstm").model.arch == "lstm"


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
