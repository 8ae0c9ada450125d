import threading

import pytest

from ehr_ray.commands.benchmark import size
from ehr_ray.errors import ConfigError


@pytest.fixture
def here(monkeypatch):
    """Starts of few patients, in this process."""
    few = {"FEW": (30, 1), "COARSE": (40, 2), "TUNING": 5, "TURNS": 2}
    sizes = {**few, "MANY": (60, 2), "FINE": (40, 4)}
    for name, value in {**sizes, "STEPS": 2}.items():
        monkeypatch.setattr(size, name, value)

    def call(function, calls):
        return [function(*each, threading.Barrier(1)) for each in calls]

    monkeypatch.setattr(size, "in_processes", call)


def test_what_starts_hold_and_take_is_told_with_ratios(here, tmp_path):
    found = size.size_speed(tmp_path, tmp_path)
    few, many = (found[f"{n} patients, MB of its own"] for n in (30, 60))
    assert found["memory of many over few"] == many / few
    for what, end in (("to the first step", ""), ("without imports", ", without imports")):
        few, many = (found[f"{n} shards, CPU s {what}"] for n in (2, 4))
        assert found[f"first step of many shards over few{end}"] == many / few
    assert all(value > 0 for value in found.values())


def test_a_system_that_does_not_tell_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(size, "STATUS", tmp_path / "none")
    with pytest.raises(ConfigError, match="only size"):
        size.size_speed(tmp_path, tmp_path)
