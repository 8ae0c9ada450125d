"""What `benchmark --config` measures of a tiny model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ehr_ray.cli import main
from ehr_ray.commands.benchmark import model, published_vitals, scaling, search
from ehr_ray.commands.benchmark.command import benchmark
from ehr_ray.commands.benchmark.model import model_speed
from ehr_ray.errors import ConfigError
from ehr_ray.experiment import load

pytestmark = pytest.mark.ray
TINY = Path(__file__).parents[2] / "configs" / "tiny"


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch):
    """A bf16 product takes seconds on a CPU that has no instructions for it."""
    monkeypatch.setattr(model, "MATRIX", 64)


@pytest.mark.parametrize("config", ["set_vae", "seqset_poe"])
def test_the_speed_of_a_config_is_measured_in_one_process(cohort, tmp_path, config):
    torch.set_num_threads(1)
    experiment = load(TINY / f"{config}.yaml", [f"data.cohort={cohort}", f"output={tmp_path}"])
    numbers = model_speed(experiment, steps=2)
    assert all(value >= 0 for value in numbers.values())
    sets = numbers["sets per CPU second"] / numbers["patients per CPU second"]
    # A SetVAE of this config draws 4 sets a stay; a SeqSetVAE has them all.
    assert sets == pytest.approx(4) if config == "set_vae" else sets > 4
    per_second = numbers["GFLOP per step"] / numbers["CPU ms per step"] * 1000
    assert numbers["GFLOP per CPU second"] == pytest.approx(per_second, rel=0.5)
    for name in ("float32", "bf16"):
        peak = numbers[f"matrix product in {name}, GFLOP per CPU second"]
        (share,) = (v for k, v in numbers.items() if k.startswith(f"utilisation of the {name}"))
        assert share == pytest.approx(numbers["GFLOP per CPU second"] / peak)
        assert share > 0  # of bf16 it is above 1 where a CPU has no instructions for it
    assert 0 <= numbers["share of padding"] < 0.6
    assert 0 <= numbers["share of time waiting for data"] < 1


def test_tokens_are_counted_without_padding(cohort, tmp_path):
    """Of as many tokens a step, those of a config that cuts records at 32 are all real."""
    changes = [f"data.cohort={cohort}", f"output={tmp_path}", "model.max_length=32"]
    numbers = model_speed(load(TINY / "event_decoder.yaml", changes), steps=2)
    tokens = numbers["tokens per CPU second"] / numbers["patients per CPU second"]
    assert tokens == pytest.approx(32 * (1 - numbers["share of padding"]))
    assert "sets per CPU second" not in numbers


@pytest.mark.parametrize("arch", ["vitals_vae", "vitals_vq"])
def test_a_model_without_tokens_has_none(cohort, tmp_path, arch):
    changes = [f"data.cohort={cohort}", f"output={tmp_path}"]
    numbers = model_speed(load(TINY / f"{arch}.yaml", changes), steps=1)
    assert numbers["patients per CPU second"] > 0
    assert "tokens per CPU second" not in numbers


def test_the_vitals_step_is_measured_beside_the_published_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published_vitals, "STEPS", 2)
    monkeypatch.setattr(published_vitals, "WARM", 0)
    monkeypatch.setattr(published_vitals, "BATCH", 4)
    found = benchmark(tmp_path / "speed.json", only="vitals")["vitals"]
    for which in ("least", "median"):
        ours = found[f"CPU ms per step, {which}"]
        theirs = found[f"published step, CPU ms, {which}"]
        assert found[f"ours over published, {which}"] == pytest.approx(ours / theirs)
    assert found["CPU ms per step, least"] <= found["CPU ms per step, median"]
    assert "ours over published" in capsys.readouterr().err


def test_the_published_architecture_has_its_size_and_its_flat_ends():
    torch.manual_seed(0)
    model = published_vitals.Published().eval()
    assert sum(p.numel() for p in model.parameters()) == 1_092_423
    with torch.no_grad():
        curves, mu, logvar = model(torch.randn(2, 745, 7))
    assert {tuple(curve.shape) for curve in curves} == {(2, 745, 7)}
    assert mu.shape == logvar.shape == (2, 32)
    flat = [float(curve[:, 515:744].diff(dim=1).abs().max()) < 1e-6 for curve in curves[1:]]
    assert flat == [True, True, True, False]


def test_counted_operations_are_those_of_the_products(cohort, tmp_path):
    """Twice the stays take twice the operations, a wider model more than twice."""
    found = []
    for width, size in ((32, 8), (32, 16), (64, 16)):
        changes = [f"model.width={width}", f"data.batch_size={size}"]
        changes += [f"data.cohort={cohort}", f"output={tmp_path}", "model.sets_per_patient=4"]
        experiment = load(TINY / "set_vae.yaml", changes)
        found.append(model_speed(experiment, steps=2)["GFLOP per step"])
    assert 1.6 < found[1] / found[0] < 2.4
    assert 2 < found[2] / found[1] < 4


def test_the_command_measures_a_config_and_writes_json(cohort, tmp_path, capsys):
    target = tmp_path / "speed.json"
    arguments = ["benchmark", "--config", str(TINY / "set_vae.yaml"), "--output", str(target)]
    assert not main.main([*arguments, f"data.cohort={cohort}"])
    parts = json.loads(target.read_text())["parts"]
    assert list(parts) == ["model"]
    assert "sets per CPU second" in parts["model"]
    assert "share of padding" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_is_measured_by_what_more_trials_take_longer(tmp_path, monkeypatch, cohort):
    """That the figures of real searches of 2 and of 8 trials belong together."""
    monkeypatch.setattr(search, "ROUNDS", 1)
    found = benchmark(tmp_path / "x.json", only="search", cohort=cohort)["search"]
    each = (found["search of 8 trials, s"] - found["search of 2 trials, s"]) / 6
    assert found["a trial, s"] == pytest.approx(each)
    assert found["start-up of a search, s"] + 2 * each == pytest.approx(
        found["search of 2 trials, s"]
    )
    assert found["steps of a trial"] > 0


@pytest.mark.slow
def test_scaling_is_measured_beside_processes_without_ray(tmp_path, monkeypatch):
    """The least of everything: what is checked is that the figures belong together."""
    sizes = {"PATIENTS": 80, "STEPS": 4, "WARM": 1, "ROUNDS": 1, "TIMES": 1, "BATCH": 8}
    for name, value in sizes.items():
        monkeypatch.setattr(scaling, name, value)
    found = benchmark(tmp_path / "x.json", only="scaling")["scaling"]
    assert all(np.isfinite(value) and value > 0 for value in found.values())
    one, two = (found[f"training, {name}, ms per step"] for name in ("1 worker", "2 workers"))
    assert found["training, strong efficiency"] == pytest.approx(one / (2 * two))
    one, two = (found[f"expand, {n} at a time, s"] for n in ("1 task", "2 tasks"))
    assert found["expand, strong efficiency"] == pytest.approx(one / (2 * two))


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--only nothing: no such part; known: .*model"):
        benchmark(tmp_path / "x.json", only="nothing")
