import json

import pytest
import torch

from ehr_ray.commands.benchmark import command, cpu, model
from ehr_ray.commands.benchmark.gpu_models import MODELS
from ehr_ray.commands.benchmark.peers.published_steps import Published


@pytest.fixture
def figures(tmp_path, monkeypatch, capfd):
    """The part on the tiny models of two families."""
    monkeypatch.setattr(cpu, "PATIENTS", 16)
    monkeypatch.setattr(cpu, "STEPS", 2)
    monkeypatch.setattr(model, "MATRIX", 64)
    monkeypatch.setattr(
        cpu,
        "PUBLISHED",
        {
            "a": Published("set_vae", "sets", 1.0, MODELS["set_vae"]["tiny"]),
            "b": Published("jepa", "patients", 1.0, MODELS["jepa"]["tiny"]),
        },
    )
    target = tmp_path / "cpu.json"
    found = command.benchmark(target, only="cpu")["cpu"]
    assert "Profiler" not in "".join(capfd.readouterr())  # that of torch tells of itself
    assert json.loads(target.read_text())["parts"]["cpu"] == found
    return found


def test_a_share_is_of_the_product_and_below_the_limit_operators_are_named(figures):
    assert {name.split(", ")[0] for name in figures} == {"a", "b"}
    for name in ("a", "b"):
        assert figures[f"{name}, GFLOP a step"] > 0
        assert figures[f"{name}, GFLOP per CPU second"] > 0
        assert 0 < figures[f"{name}, share of a matrix product's"] < cpu.ENOUGH
        operators = figures[f"{name}, most CPU time"].split(", ")
        assert len(operators) == cpu.OPERATORS
        shares = [int(told.split()[-1].removesuffix("%")) for told in operators]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 100


def test_of_what_is_fast_enough_no_operator_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "PATIENTS", 16)
    monkeypatch.setattr(cpu, "STEPS", 1)
    monkeypatch.setattr(cpu, "ENOUGH", 0.0)
    monkeypatch.setattr(model, "MATRIX", 64)
    one = Published("set_vae", "sets", 1.0, MODELS["set_vae"]["tiny"])
    monkeypatch.setattr(cpu, "PUBLISHED", {"a": one})
    before = torch.get_num_threads()
    found = cpu.cpu_speed(tmp_path)
    assert set(found) == {
        "a, GFLOP a step",
        "a, GFLOP per CPU second",
        "a, share of a matrix product's",
    }
    assert torch.get_num_threads() == before
