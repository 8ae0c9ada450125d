import pytest

from ehr_ray.errors import ConfigError
from ehr_ray.experiment import dump, parse
from ehr_ray.families.vitals_vae.config import VitalsVAEConfig


def experiment(**model):
    return {"family": "vitals_vae", "name": "x", "data": {"cohort": "c"}, "model": model}


def test_the_default_grid_is_that_of_the_seed():
    config = VitalsVAEConfig()
    assert (config.num_hours, config.num_vitals, config.first_hour) == (745, 7, -24)


@pytest.mark.parametrize(("landmark", "hours"), [(24, 48), (48, 72), (72, 96), (721, 745)])
def test_a_landmark_ends_the_grid(landmark, hours):
    assert VitalsVAEConfig(landmark=landmark).num_hours == hours


def test_a_landmark_beyond_the_grid_is_refused():
    with pytest.raises(ValueError, match="landmark 72 lies beyond the grid"):
        VitalsVAEConfig(first_hour=0, last_hour=47, landmark=72)


def test_vitals_are_given_as_plain_data_and_come_back_equal():
    vital = {"name": "HR", "codes": ["a", "b"], "low": 1, "high": 2, "carry_hours": 3}
    found = parse(experiment(vitals=[vital], last_hour=47))
    assert found.model.vitals[0].codes == ("a", "b")
    assert found.model.num_vitals == 1
    assert parse(dump(found)) == found


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"vitals": []}, "at least one"),
        ({"first_hour": 5, "last_hour": 5}, "fewer than 2 hours"),
        ({"arch": "vq", "fallback": "vq"}, "another arch"),
        ({"vitals": [{"name": "HR", "codes": [], "low": 1, "high": 2}] * 2}, "different names"),
        ({"arch": "gru"}, "arch"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(model, text):
    with pytest.raises(ConfigError, match=text):
        parse(experiment(**model))
