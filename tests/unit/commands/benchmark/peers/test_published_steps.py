import pytest

from ehr_ray.commands.benchmark.gpu_models import MODELS
from ehr_ray.commands.benchmark.peers import published_steps as module
from ehr_ray.experiment import parse
from ehr_ray.sources.source import SOURCES


@pytest.mark.parametrize("name", module.PUBLISHED)
def test_a_step_at_published_sizes_is_a_config_and_its_patients_have_a_source(name, tmp_path):
    peer = module.PUBLISHED[name]
    assert parse(module.plan(peer, tmp_path, tmp_path)).family == peer.family
    assert peer.source in SOURCES
    assert peer.unit in ("sets", "tokens", "patients")


def test_a_ratio_says_that_theirs_is_of_another_machine(tmp_path, monkeypatch):
    tiny = module.Published("set_vae", "sets", 4.0, MODELS["set_vae"]["tiny"])
    monkeypatch.setattr(module, "PUBLISHED", {"SetVAE": tiny})
    monkeypatch.setattr(module, "PATIENTS", 16)
    found = module.published_steps(tmp_path)
    here = found.pop("SetVAE, sets per CPU second of training here")
    assert found == {
        "SetVAE, the same, published code, another run and machine": 4.0,
        "SetVAE, here over published code, another run and machine": here / 4.0,
    }
    assert here > 0
