"""What training must bring about: fitted buffers, kept checkpoints, resume, and two views."""

import pytest
import torch
from killed import Killed
from safetensors.torch import load_file

from ehr_ray.registry import get_family
from ehr_ray.train import history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import load
from ehr_ray.train.loop import train
from ehr_ray.train.report import Watch


@pytest.fixture
def run(tiny_experiment, make_loader, synthetic_vocabulary):
    def start(folder, kill=None, **more):
        changes = {"train.max_epochs": 3, "train.max_steps": 6, "model.dropout": 0.1, **more}
        experiment = tiny_experiment("hcat", changes)
        loader = make_loader(experiment)

        def on_step(done, _total):
            if done == kill:
                raise Killed

        family = get_family("hcat")
        args = (experiment, family, synthetic_vocabulary, loader, LocalBackend(), folder)
        return train(*args, Watch(on_step=on_step))

    return start


def test_a_killed_run_goes_on_to_the_same_weights_and_bests(run, tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "cut", kill=4)
    resumed = run(tmp_path / "cut")
    assert resumed.bests == whole.bests
    assert set(whole.bests) == {"surv", "rec", "avg"}
    for name in ("checkpoint", "checkpoints/best_surv", "checkpoints/final"):
        a, b = (load_file(tmp_path / f / name / "model.safetensors") for f in ("whole", "cut"))
        assert [k for k in a if not torch.equal(a[k], b[k])] == []


def test_the_checkpoint_of_an_outcome_is_its_best_report(run, tmp_path):
    progress = run(tmp_path)
    told = history.read(tmp_path)
    assert progress.bests["rec"] == told["val/f1_rec"].max()
    assert progress.bests["avg"] == told["val/f1_avg"].max()
    assert progress.best == told["val/nll_avg"].min()
    by_auc = run(tmp_path / "auc", **{"model.best_by": "auc", "train.max_steps": 2})
    assert by_auc.bests["rec"] == history.read(tmp_path / "auc")["val/auc_rec"].max()


def test_the_final_model_is_kept_and_loads(run, tmp_path):
    run(tmp_path)
    final = load(tmp_path / "checkpoints" / "final").model.state_dict()
    last = load_file(sorted((tmp_path / "state").iterdir())[-1] / "model.safetensors")
    assert [name for name, tensor in final.items() if not torch.equal(tensor, last[name])] == []


def test_what_train_fits_is_in_the_checkpoint(run, tmp_path):
    run(tmp_path)
    model = load(tmp_path).model
    assert model.token_mean.abs().max() > 0.1
    assert model.still_followed[0, 0] == 1
    assert (model.still_followed.diff(dim=1) <= 0).all()
    assert model.quality_center.max() > 0.3
