"""Fallback, export and evaluation without labels, as a user meets them; trained in this process."""

from pathlib import Path

import h5py
import pytest
import yaml

from ehr_ray.commands.evaluate.command import evaluate
from ehr_ray.commands.prepare import prepare
from ehr_ray.commands.train import fallback
from ehr_ray.commands.train.command import train
from ehr_ray.errors import InputError
from ehr_ray.experiment import load
from ehr_ray.families.vitals_vae.evaluation import suites
from ehr_ray.runtime.screen import Screen
from ehr_ray.train import report
from ehr_ray.train.checkpoint import load as load_run
from ehr_ray.train.checkpoint import save_state

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


COLLAPSE = {
    "model__fallback": "vq",
    "model__evidence": 0.01,
    "schedules__beta": 1000.0,
    "schedules__free_bits": 0.0,
    "train__max_epochs": 8,
}
"""A divergence this dear leaves the latent unused, whatever the data and the seed."""


def record(run):
    return yaml.safe_load((run / "fallback.yaml").read_text())


def test_two_collapsed_seeds_are_followed_by_the_fallback_through_a_kill(
    experiment, tmp_path, monkeypatch, capsys
):
    """The second seed's run dies at its third report; the same command goes on there."""
    collapsing, saves = experiment(**COLLAPSE), []

    def killed(run, *args):
        save_state(run, *args)
        saves.append(run.name)
        if saves.count("tiny_vitals_vae_seed1") == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            train(collapsing)
    capsys.readouterr()
    done = train(collapsing)
    said = capsys.readouterr().err
    begun = [line for line in said.splitlines() if "train and" in line]
    assert [line.partition(":")[0] for line in begun] == ["tiny_vitals_vae_seed1", done.run.name]
    assert "resuming at step" in begun[0]
    assert done.run == tmp_path / "tiny_vitals_vae_fallback"
    assert load_run(done.run).experiment.model.arch == "vq"
    again = load_run(tmp_path / "tiny_vitals_vae_seed1").experiment
    assert (again.seed, again.model.arch) == (1, "conv")
    assert not (tmp_path / "tiny_vitals_vae_seed2").exists()
    found = record(tmp_path / "tiny_vitals_vae")
    assert (found["collapsed"], found["trained_instead"]) == ("2 of 2 seeds", done.run.name)
    assert list(found["verdicts"]) == ["tiny_vitals_vae", "tiny_vitals_vae_seed1"]
    assert "nats a patient" in found["verdicts"]["tiny_vitals_vae_seed1"]["reason"]
    assert said.count("the latent has collapsed (") == 2
    assert "collapsed with 2 of 2 seeds; training tiny_vitals_vae_fallback in its place" in said
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
    assert [path.name for path in tmp_path.glob("tiny_*")] == ["tiny_vitals_vae"]


@pytest.fixture
def judged(experiment, tmp_path, monkeypatch):
    """`judged([True, False])`: what stands if seed 0 has collapsed and seed 1 has not."""

    def run(collapsed, fail_at=None):
        first = experiment(model__fallback="vq")
        run, trained, lines = tmp_path / first.name, [], []
        run.mkdir(exist_ok=True)
        metrics = {True: {"active_units": 1.0, "kl_per_row": 0.2}}
        metrics[False] = {"active_units": 8.0, "kl_per_row": 9.0}

        class Found:
            def __init__(self, one):
                self._one = one

            def metrics(self):
                return metrics[collapsed[self._one.seed]]

        def train_seed(one):
            if one.seed == fail_at:
                raise KeyboardInterrupt
            trained.append(one.seed)
            return tmp_path / one.name

        monkeypatch.setattr(fallback, "tuning_latents", lambda one, _run: Found(one))
        stands = fallback.resolve_collapse(first, run, train_seed, lines.append)
        return stands, trained, lines

    return run


@pytest.mark.parametrize(
    ("collapsed", "name", "arch", "trained"),
    [
        ([False], "tiny_vitals_vae", "conv", []),
        ([True, True], "tiny_vitals_vae_fallback", "vq", [1]),
        ([True, False, True], "tiny_vitals_vae_fallback", "vq", [1, 2]),
        ([True, False, False], "tiny_vitals_vae_seed1", "conv", [1, 2]),
    ],
)
def test_two_of_three_seeds_decide(collapsed, name, arch, trained, judged, tmp_path):
    stands, seeds, lines = judged(collapsed)
    assert (stands.name, stands.model.arch, seeds) == (name, arch, trained)
    assert stands.seed == (1 if name.endswith("seed1") else 0)
    if not trained:
        assert lines == []
        return
    verdicts = [line for line in lines if "nats a patient" in line]
    assert ["collapsed" in line for line in verdicts] == collapsed
    found = record(tmp_path / "tiny_vitals_vae")
    assert [v["collapsed"] for v in found["verdicts"].values()] == collapsed
    assert found["stands"] == name
    assert found["trained_instead"] == (name if arch == "vq" else None)


def test_a_command_killed_between_seeds_goes_on(judged, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        judged([True, False, True], fail_at=2)
    assert not (tmp_path / "tiny_vitals_vae" / "fallback.yaml").exists()
    stands, _, _ = judged([True, False, True])
    assert stands.name == "tiny_vitals_vae_fallback"


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
    monkeypatch.setattr(suites, "RESAMPLES", 1)
    monkeypatch.setattr(suites, "MAPPED_RESAMPLES", 1)
    done = train(experiment())
    lines = evaluate(done.run, task="none")
    assert any(line.startswith("criteria: ") for line in lines)
    for name in (
        "vae_latents.h5",
        "vae_multiscale_components.h5",
        "vae_metadata.json",
        "fpca_scores.parquet",
        "fpca_components.h5",
        "phenotypes.parquet",
    ):
        assert (done.run / name).is_file()
    page = (done.run / "report.html").read_text()
    assert "Criteria" in page
    assert "Phenotypes" in page
