import pytest

from ehr_ray.commands.benchmark.gpu_models import MODELS
from ehr_ray.commands.benchmark.model import Trainer, patients_of
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


def test_a_step_made_anew_has_as_many_patients_as_ours_and_is_taken_in_turn(
    tiny_experiment, monkeypatch
):
    """The 64 patients give 27 a step, not the 32 of its batch size: theirs must have 27 too."""
    taken = []
    monkeypatch.setattr(Trainer, "step", lambda _, micro: taken.append(patients_of(micro)))

    def made_anew(patients):
        return lambda: taken.append(-patients)

    found = module.beside(tiny_experiment("jepa"), made_anew)
    size = taken[0]
    assert size > 0
    assert taken == [size, -size] * (1 + module.STEPS)
    assert found["here over made anew"] == pytest.approx(
        found["patients per CPU second, one batch again and again"]
        / found["the same, made anew in this process"]
    )
