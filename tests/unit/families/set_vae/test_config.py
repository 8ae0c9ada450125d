import pytest

from ehr_ray.families.set_vae.config import SetVAEConfig


def test_width_must_divide_by_heads():
    with pytest.raises(ValueError, match="width 10 must be a multiple of heads 4"):
        SetVAEConfig(width=10)


def test_a_pool_is_needed():
    with pytest.raises(ValueError, match="pool must name at least one"):
        SetVAEConfig(pool=())
