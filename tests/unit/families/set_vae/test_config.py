import pytest

from ehr_ray.config.schedules import Constant, Ramp
from ehr_ray.experiment import parse
from ehr_ray.families.set_vae.config import SetVAEConfig


def test_width_must_divide_by_heads():
    with pytest.raises(ValueError, match="width 10 must be a multiple of heads 4"):
        SetVAEConfig(width=10)


def test_a_pool_is_needed():
    with pytest.raises(ValueError, match="pool must name at least one"):
        SetVAEConfig(pool=())


def test_perturbations_and_schedules_are_the_published_ones_unless_told():
    experiment = parse({"family": "set_vae", "name": "x", "data": {"cohort": "c"}})
    model = experiment.model
    assert (model.p_stale, model.p_live) == (0.5, 0.05)
    assert (model.set_mae_ratio, model.max_masks_per_set) == (0.15, 2)
    assert (model.small_set_threshold, model.small_set_mask_prob) == (5, 0.4)
    assert (model.val_noise_std, model.dir_noise_std) == (0.07, 0.01)
    assert model.decoder_noise == 0.3
    assert 0 <= model.eval_decoder_noise <= 0.05
    beta, bits = experiment.schedules["beta"], experiment.schedules["free_bits"]
    assert isinstance(beta, Ramp)
    assert (beta.at(0, 10), beta.at(10**6, 10)) == (0, 0.2)
    assert bits == Constant(value=0.05)


def test_the_warm_up_of_beta_can_be_left_out():
    raw = {"family": "set_vae", "name": "x", "data": {"cohort": "c"}}
    flat = parse({**raw, "schedules": {"beta": 0.2}}).schedules["beta"]
    assert flat.at(0, 10) == flat.at(10**6, 10) == 0.2
