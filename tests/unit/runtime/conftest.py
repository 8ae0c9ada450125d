from pathlib import Path

import pytest

from ehr_ray.experiment import load

CONFIGS = Path(__file__).parents[3] / "configs" / "tiny"


@pytest.fixture(scope="session")
def tiny_config():
    """Read a tiny config; further arguments are dotted overrides: tiny_config("hcat", **{...})."""

    def make(config="set_vae", **changes):
        settings = {"data.cohort": "cohort", **changes}
        return load(CONFIGS / f"{config}.yaml", [f"{k}={v}" for k, v in settings.items()])

    return make
