"""Which parts a command runs, what it refuses beforehand, and what it leaves; see also ray/."""

import contextlib
import json

import pytest

from ehr_ray.commands.benchmark import command
from ehr_ray.commands.benchmark.command import benchmark
from ehr_ray.errors import ConfigError, RunError


@pytest.fixture
def nothing_made(monkeypatch):
    """Neither a cohort nor a measurement."""
    monkeypatch.setattr(command, "ingest", None)
    monkeypatch.setattr(command, "model_speed", None)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"device": "cuda"}, "--device cuda: of the part gpu alone; add --only gpu, or drop it"),
        ({"only": "lvcf,peers", "device": "cpu"}, "--device cpu: of the part gpu alone"),
        ({"only": "vitals,memory", "cohort": "x"}, "--only vitals,memory makes its own patients"),
        ({"only": "gpu,gpu", "device": "cpu"}, "--only gpu,gpu: gpu is named twice; name each"),
        ({"only": "lvcf,peers,lvcf"}, "--only lvcf,peers,lvcf: lvcf is named twice"),
    ],
)
def test_an_option_that_no_part_takes_and_a_part_twice_are_refused(
    options, told, nothing_made, tmp_path
):
    with pytest.raises(ConfigError, match=f"^{told}"):
        benchmark(tmp_path / "x.json", **options)
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"only": "gpu", "device": "cpu"}, "--only gpu: --config is of the part model; add it"),
        ({"only": "lvcf"}, "--only lvcf: --config is of the part model"),
        ({"only": "model", "device": "cuda"}, "--device cuda: of the part gpu alone"),
    ],
)
def test_a_config_is_of_the_part_model(options, told, nothing_made, tiny_experiment, tmp_path):
    with pytest.raises(ConfigError, match=f"^{told}"):
        benchmark(tmp_path / "x.json", experiment=tiny_experiment(), **options)


def test_a_config_that_asks_for_a_gpu_is_refused_before_other_parts(
    nothing_made, tiny_experiment, tmp_path
):
    experiment = tiny_experiment(changes={"cluster.gpus_per_worker": 0.5})
    with pytest.raises(ConfigError, match=r"^cluster\.gpus_per_worker=0\.5: the part model"):
        benchmark(tmp_path / "x.json", only="cpu,model", experiment=experiment)
    assert not (tmp_path / "x.json").exists()


def test_a_config_is_measured_on_its_own_cohort_beside_other_parts_too(
    tiny_experiment, synthetic_cohort, tmp_path, monkeypatch
):
    told = []
    monkeypatch.setattr(command, "ingest", None)
    monkeypatch.setattr(command, "model_speed", lambda plan: told.append(plan.data.cohort) or {})
    monkeypatch.setitem(command.LONG, "peers", lambda cohort, _: told.append(str(cohort)) or {})
    experiment = tiny_experiment(changes={"data.cohort": str(synthetic_cohort)})
    benchmark(tmp_path / "x.json", only="model,peers", experiment=experiment)
    assert told == [str(synthetic_cohort)] * 2


def test_what_a_part_has_measured_stays_where_the_next_one_fails(
    synthetic_cohort, tmp_path, monkeypatch
):
    def fails(_cohort, _place):
        raise RunError("lvcf: tokens differ from polars'")

    monkeypatch.setattr(command, "session", lambda **_: contextlib.nullcontext())
    monkeypatch.setitem(command.PARTS, "lvcf", lambda *_: {"tokens": 2.0})
    monkeypatch.setitem(command.LONG, "peers", fails)
    target = tmp_path / "x.json"
    with pytest.raises(RunError, match="tokens differ"):
        benchmark(target, cohort=synthetic_cohort, only="lvcf,peers")
    assert json.loads(target.read_text())["parts"] == {"lvcf": {"tokens": 2.0}}
