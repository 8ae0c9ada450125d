import pytest

from ehr_ray.commands.benchmark import model
from ehr_ray.commands.benchmark.model import model_speed


@pytest.fixture
def numbers(tiny_experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "MATRIX", 64)
    monkeypatch.setattr(model, "FEED_STEPS", 3)
    changes = {"output": str(tmp_path), "cluster.num_workers": 0, "train.accumulate": 2}
    return model_speed(tiny_experiment("vitals_vae", changes), steps=2)


def test_a_null_model_tells_what_the_feed_gives_and_its_share_of_a_step(numbers):
    step, feed = numbers["CPU ms per step"], numbers["null model, CPU ms per step"]
    assert numbers["null model, patients per second"] > 0
    assert feed > 0
    assert numbers["feed's share of a step's CPU time"] == pytest.approx(feed / (feed + step))
