import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ehr_ray.train
from ehr_ray.config import TrainConfig
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.registry import get_family
from ehr_ray.train import checkpoint
from ehr_ray.train.checkpoint import (
    Progress,
    checkpoint_folder,
    load,
    load_state,
    save_checkpoint,
    save_state,
    saved_progress,
)
from ehr_ray.train.optim import make_optimizer


@pytest.fixture
def experiment(tiny_experiment):
    return tiny_experiment()


@pytest.fixture
def model(experiment, synthetic_vocabulary):
    torch.manual_seed(3)
    return get_family(experiment.family).build(experiment.model, synthetic_vocabulary)


def assert_same_state(a, b):
    assert list(a) == list(b)
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_a_checkpoint_carries_all_it_takes_to_load(
    tmp_path, experiment, model, synthetic_vocabulary
):
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    for path in (tmp_path, tmp_path / "checkpoint", str(tmp_path)):
        loaded = load(path)
        assert loaded.experiment == experiment
        assert loaded.family.name == experiment.family
        assert loaded.vocabulary.codes == synthetic_vocabulary.codes
        assert (loaded.vocabulary.std == synthetic_vocabulary.std).all()
        assert not loaded.model.training
        assert_same_state(loaded.model.state_dict(), model.state_dict())


def test_a_second_checkpoint_replaces_the_first_and_leaves_nothing(
    tmp_path, experiment, model, synthetic_vocabulary
):
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    with torch.no_grad():
        model.query.weight.add_(1)
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    assert_same_state(load(tmp_path).model.state_dict(), model.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("kill_at", [0, 1])
def test_a_kill_between_the_renames_leaves_a_checkpoint(
    tmp_path, experiment, model, synthetic_vocabulary, monkeypatch, kill_at
):
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    renames, rename = [], Path.rename

    def killed(self, target):
        if len(renames) == kill_at:
            raise KeyboardInterrupt
        renames.append(target)
        return rename(self, target)

    with torch.no_grad():
        model.query.weight.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    assert_same_state(load(tmp_path).model.state_dict(), before)
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    assert_same_state(load(tmp_path).model.state_dict(), model.state_dict())


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint here"):
        checkpoint_folder(tmp_path)


def tiny(width=3):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()


def test_state_restores_weights_moments_and_progress_bit_for_bit(tmp_path):
    model = tiny()
    optimizer = make_optimizer(model, TrainConfig())
    for _ in range(3):
        step(model, optimizer)
    progress = Progress(step=3, best=0.1234567890123456, reports_since_best=2, seconds=1.5)
    save_state(tmp_path, model, optimizer, progress)
    other = tiny()
    restored = make_optimizer(other, TrainConfig())
    assert load_state(tmp_path, other, restored) == progress == saved_progress(tmp_path)
    for _ in range(2):
        step(model, optimizer)
        step(other, restored)
    assert_same_state(other.state_dict(), model.state_dict())


def test_only_the_newest_state_is_kept_and_a_half_one_ignored(tmp_path):
    model = tiny()
    optimizer = make_optimizer(model, TrainConfig())
    for number in (5, 40):
        save_state(tmp_path, model, optimizer, Progress(step=number))
    assert [p.name for p in (tmp_path / "state").iterdir()] == [f"{40:012d}"]
    half = tmp_path / "state" / f".{50:012d}.1"
    half.mkdir()
    (half / "progress.yaml").write_text("step: 50")
    assert saved_progress(tmp_path).step == 40


def test_a_run_without_state_changes_nothing(tmp_path):
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert load_state(tmp_path, model, make_optimizer(model, TrainConfig())) is None
    assert saved_progress(tmp_path) is None
    assert_same_state(model.state_dict(), before)


def test_a_state_of_another_model_is_refused(tmp_path):
    model = tiny()
    save_state(tmp_path, model, make_optimizer(model, TrainConfig()), Progress())
    other = tiny(width=4)
    with pytest.raises(ConfigError, match="do not fit this model"):
        load_state(tmp_path, other, make_optimizer(other, TrainConfig()))


def test_nothing_is_unpickled_under_train():
    banned = re.compile(r"pickle|torch\.load\b|torch\.save\b|joblib|marshal|shelve|allow_pickle")
    for path in Path(ehr_ray.train.__file__).parent.glob("*.py"):
        code = re.sub(r'""".*?"""', "", path.read_text(), flags=re.DOTALL)
        assert not banned.search(code), path
    assert "safetensors" in Path(checkpoint.__file__).read_text()
