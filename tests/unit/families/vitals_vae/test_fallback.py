import pytest

from ehr_ray.families.vitals_vae.fallback import fallback

HEALTHY = {"active_units": 20.0, "kl_per_row": 12.0}


@pytest.mark.parametrize("bad", [{"active_units": 3.0}, {"kl_per_row": 0.9}])
def test_a_collapsed_latent_gives_way_to_codes(bad, make_config):
    found = fallback(make_config(fallback="vq"), HEALTHY | bad)
    assert (found.arch, found.fallback) == ("vq", None)
    assert found.num_hours == make_config().num_hours


def test_a_used_latent_stands(make_config):
    assert fallback(make_config(fallback="vq"), HEALTHY) is None


def test_nothing_is_done_unasked(make_config):
    assert fallback(make_config(), {"active_units": 0.0, "kl_per_row": 0.0}) is None
