import pytest

from ehr_ray.commands.benchmark import memory as memory_module
from ehr_ray.commands.benchmark.memory import memory


def test_the_peak_of_many_patients_is_held_against_that_of_few(tmp_path, monkeypatch):
    monkeypatch.setattr(memory_module, "PATIENTS", (4, 8))
    monkeypatch.setattr(memory_module, "in_process", lambda function, *args: function(*args))
    found = memory(tmp_path, tmp_path)
    few, many = found["MiB, 4 patients"], found["MiB, 8 patients"]
    assert found["ratio"] == pytest.approx(many / few)
    for patients in (4, 8):
        assert list((tmp_path / f"expanded-{patients}").glob("*.parquet"))
