"""Fallback, export and evaluation without labels, as a user meets them; trained in this process."""

from pathlib import Path

import h5py
import pytest
import yaml

from ehr_ray.config import load
from ehr_ray.errors import InputError
from ehr_ray.evaluation import vitals
from ehr_ray.runtime.evaluation import evaluate
from ehr_ray.runtime.progress import Screen
from ehr_ray.runtime.trainer import prepare, train
from ehr_ray.train.checkpoint import load as load_run

CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"


@pytest.fixture
def experiment(synthetic_cohort, tmp_path):
    def make(config="vitals_vae", **changes):
        settings = {
            "data.cohort": str(synthetic_cohort),
            "output": str(tmp_path),
            "cluster.num_workers": 0,
            "tracking.experiment": "null",
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        overrides = [f"{key}={value}" for key, value in settings.items()]
        return load(CONFIGS / f"{config}.yaml", overrides)

    return make


def test_a_collapsed_run_is_followed_by_its_fallback(experiment, tmp_path, capsys):
    """A divergence this dear leaves the latent unused, whatever the data."""
    changes = {"schedules__beta": 1000.0, "schedules__free_bits": 0.0, "train__max_epochs": 8}
    collapsing = experiment(model__fallback="vq", model__evidence=0.01, **changes)
    done = train(collapsing)
    assert done.run == tmp_path / "tiny_vitals_vae_fallback"
    assert load_run(done.run).experiment.model.arch == "vq"
    record = yaml.safe_load((tmp_path / "tiny_vitals_vae" / "fallback.yaml").read_text())
    assert record["trained_instead"] == "tiny_vitals_vae_fallback"
    assert "nats a patient" in record["collapsed"]
    assert "the latent has collapsed" in capsys.readouterr().err
    assert train(collapsing).already_finished


def test_a_run_whose_latent_is_used_stands(experiment, tmp_path):
    done = train(
        experiment(
            model__fallback="vq",
            model__evidence=1.0,
            schedules__beta=0.01,
            train__max_epochs=15,
        )
    )
    assert done.run == tmp_path / "tiny_vitals_vae"
    assert not (done.run / "fallback.yaml").exists()


def test_all_patients_are_exported(experiment, tmp_path):
    path = tmp_path / "hourly_tensors.h5"
    lines = prepare(experiment(), Screen(), export=path)
    assert lines[-1] == f"{path}: 60 patients (train, tuning, held_out)"
    with h5py.File(path) as file:
        assert file["values"].shape == (60, 48, 7)
        assert file["masks"][:].mean() > 0.3


def test_a_family_without_a_format_says_so(experiment, tmp_path):
    with pytest.raises(InputError, match=r"--export .* no file format"):
        prepare(experiment("set_vae"), Screen(), export=tmp_path / "x.h5")


@pytest.mark.ray
def test_whole_stays_are_evaluated_without_a_task(experiment, cluster, monkeypatch):
    monkeypatch.setattr(vitals, "RESAMPLES", 1)
    done = train(experiment())
    lines = evaluate(done.run, task="none")
    assert any(line.startswith("criteria: ") for line in lines)
    for name in ("vae_latents.h5", "vae_multiscale_components.h5", "vae_metadata.json"):
        assert (done.run / name).is_file()
    page = (done.run / "report.html").read_text()
    assert "Criteria" in page
    assert "Phenotypes" in page
