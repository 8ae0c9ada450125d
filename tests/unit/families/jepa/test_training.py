import numpy as np
import pytest
import torch
from killed import Killed
from safetensors.torch import load_file

from ehr_ray.errors import InputError
from ehr_ray.registry import get_family
from ehr_ray.train import history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.loop import train
from ehr_ray.train.report import Watch

MEASURES = ("skill", "shuffled_gap", "target_std", "target_cosine", "target_rankme")


@pytest.fixture
def run(tiny_experiment, make_loader, synthetic_vocabulary):
    def start(folder, changes=None, kill_at=None, watch=None):
        def on_step(done, _total):
            if done == kill_at:
                raise Killed

        experiment = tiny_experiment("jepa", {"train.max_epochs": 3, **(changes or {})})
        family, loader = get_family("jepa"), make_loader(experiment)
        arguments = (experiment, family, synthetic_vocabulary, loader, LocalBackend(), folder)
        return train(*arguments, watch or Watch(on_step=on_step))

    return start


def weights(folder):
    state = max((folder / "state").iterdir())
    return load_file(state / "model.safetensors")


def test_a_killed_run_ends_as_a_whole_one_the_target_included(run, tmp_path):
    changes = {"train.report_steps": 2, "train.final_weight_decay": 0.4}
    changes["schedules.momentum"] = {"kind": "ramp", "start": 0.9, "end": 1.0, "epochs": 3}
    run(tmp_path / "whole", changes)
    for step in (3, 6):
        with pytest.raises(Killed):
            run(tmp_path / "cut", changes, kill_at=step)
    run(tmp_path / "cut", changes)
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    names = [name for name in theirs if name.startswith("target.")]
    assert names
    online = [theirs[name.replace("target.", "encoder.", 1)] for name in names]
    assert all(torch.isfinite(value).all() for value in online)
    assert any(not torch.equal(theirs[n], v) for n, v in zip(names, online, strict=True))
    frames = [history.read(tmp_path / name) for name in ("cut", "whole")]
    columns = ["seconds", "data_wait"]
    assert frames[0].drop(columns=columns).equals(frames[1].drop(columns=columns))
    assert {f"val/{name}" for name in MEASURES} <= set(frames[0].columns)
    assert "momentum" in frames[0].columns


@pytest.mark.parametrize(("warmup", "times"), [(99, 1), (0, 2)])
def test_a_run_that_does_not_learn_says_so_after_warm_up_or_at_its_end(
    run, tmp_path, warmup, times
):
    told = []
    changes = {"train.lr": 1e-9, "train.max_epochs": 2, "train.warmup_steps": warmup}
    run(tmp_path / "run", changes, watch=Watch(on_lines=told.append))
    assert [line.split(":")[0] for lines in told for line in lines] == ["not learned"] * times


def test_two_ranks_train_as_one(tiny_experiment, make_loader, train_ranks, tmp_path):
    experiment = tiny_experiment("jepa", {"train.max_epochs": 1})
    loader = make_loader(experiment)
    for world in (1, 2):
        assert train_ranks(tmp_path / str(world), experiment, loader, world) == [0] * world
    one, two = (history.read(tmp_path / str(world) / "run").iloc[-1] for world in (1, 2))
    for name in ("train/latent", "train/value", "val/latent", "val/value", "grad_norm"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    for name in MEASURES:
        assert two[f"val/{name}"] == pytest.approx(one[f"val/{name}"], rel=1e-3, abs=1e-5), name
    ours, theirs = weights(tmp_path / "1" / "run"), weights(tmp_path / "2" / "run")
    for name in (n for n in ours if n.startswith("target.")):
        torch.testing.assert_close(theirs[name], ours[name], rtol=1e-3, atol=1e-4)
    first, second = (torch.load(tmp_path / "2" / f"end-{r}.pt", weights_only=True) for r in (0, 1))
    assert [n for n in first if not torch.equal(first[n], second[n])] == []


def test_a_cohort_of_one_visit_each_is_refused_before_the_first_step(run, tmp_path):
    with pytest.raises(InputError) as caught:
        run(tmp_path / "run", {"model.rows": "visits"}, kill_at=1)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("train split: none of ")
    assert "HOSPITAL_ADMISSION" in line
    assert "use model.rows=hours" in line


def test_a_batch_of_one_is_measured_all_the_same_and_has_no_regulariser(run, tmp_path):
    changes = {"data.batch_size": 1, "train.max_epochs": 1, "train.max_steps": 1}
    run(tmp_path / "run", changes)
    assert np.isfinite(history.read(tmp_path / "run")["val/skill"]).all()
    for name in ("vicreg", "sigreg"):
        with pytest.raises(InputError, match=f"^model.regulariser={name} compares the patients"):
            run(tmp_path / name, {**changes, "model.regulariser": name}, kill_at=1)


def test_a_killed_run_with_dropout_ends_as_a_whole_one(run, tmp_path):
    """The target has no dropout from the first step on, not only since the first report."""
    changes = {"model.dropout": 0.2, "train.report_steps": 2, "train.max_steps": 5}
    run(tmp_path / "whole", changes)
    with pytest.raises(Killed):
        run(tmp_path / "cut", changes, kill_at=3)
    run(tmp_path / "cut", changes)
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_activations_computed_again_change_no_weight(run, tmp_path):
    changes = {"train.max_epochs": 1, "model.dropout": 0.2}
    for recomputed in (False, True):
        name = "train.activation_checkpointing"
        run(tmp_path / str(recomputed), {**changes, name: recomputed})
    ours, theirs = weights(tmp_path / "True"), weights(tmp_path / "False")
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
