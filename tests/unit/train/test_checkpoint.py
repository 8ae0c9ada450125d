import errno
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import nn

from ehr_ray.config.sections import TrainConfig
from ehr_ray.config.yaml_files import read_yaml
from ehr_ray.errors import ConfigError, InputError, RunError
from ehr_ray.registry import get_family
from ehr_ray.train.checkpoint import (
    Progress,
    checkpoint_folder,
    load,
    load_state,
    moments_of,
    save_checkpoint,
    save_state,
    saved_progress,
)
from ehr_ray.train.checksums import document
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
        assert (loaded.vocabulary.location == synthetic_vocabulary.location).all()
        assert (loaded.vocabulary.scale == synthetic_vocabulary.scale).all()
        assert not loaded.model.training
        assert_same_state(loaded.model.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("family", "scaling"),
    [("set_vae", "standard"), ("jepa", "robust"), ("vitals_vae", "robust"), ("hcat", "standard")],
)
def test_a_checkpoint_from_before_the_option_scales_values_as_it_was_trained(
    tmp_path, tiny_experiment, synthetic_vocabulary, family, scaling
):
    experiment = tiny_experiment(family)
    model = get_family(family).build(experiment.model, synthetic_vocabulary)
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    folder = tmp_path / "checkpoint"
    raw = read_yaml(folder / "experiment.yaml")
    del raw["data"]["scale"]
    (folder / "experiment.yaml").write_text(document(yaml.safe_dump(raw)))
    table = pq.read_table(folder / "vocabulary.parquet")
    pq.write_table(table.replace_schema_metadata(None), folder / "vocabulary.parquet")
    loaded = load(tmp_path)
    assert (loaded.vocabulary.scaling, loaded.experiment.data.scale) == (scaling, scaling)


def test_a_second_checkpoint_replaces_the_first_which_stays_beside_it(
    tmp_path, experiment, model, synthetic_vocabulary
):
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    with torch.no_grad():
        model.query.weight.add_(1)
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    assert_same_state(load(tmp_path).model.state_dict(), model.state_dict())
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary, "checkpoints/best")
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary, "checkpoints/best")
    found = sorted(p.name for p in tmp_path.iterdir())
    assert found == [".checkpoint.old", "checkpoint", "checkpoints"]


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
    save_state(tmp_path, model, moments_of(optimizer), progress)
    other = tiny()
    restored = make_optimizer(other, TrainConfig())
    assert load_state(tmp_path, other, restored) == progress == saved_progress(tmp_path)
    for _ in range(2):
        step(model, optimizer)
        step(other, restored)
    assert_same_state(other.state_dict(), model.state_dict())


def test_the_two_newest_states_are_kept_and_a_half_one_ignored(tmp_path):
    model = tiny()
    optimizer = make_optimizer(model, TrainConfig())
    for number in (5, 7, 40):
        save_state(tmp_path, model, moments_of(optimizer), Progress(step=number))
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == [f"{7:012d}", f"{40:012d}"]
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
    save_state(tmp_path, model, moments_of(make_optimizer(model, TrainConfig())), Progress())
    other = tiny(width=4)
    with pytest.raises(ConfigError, match="do not fit this model"):
        load_state(tmp_path, other, make_optimizer(other, TrainConfig()))


def spoil(path, how):
    """Cut a file in half, flip a bit in its middle, remove it, or put a pickle in its place."""
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "pickle":
        path.unlink()
        torch.save({"weight": torch.ones(2)}, path)
        return
    if how == "half":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("model.safetensors", "half"),
        ("model.safetensors", "flip"),
        ("model.safetensors", "pickle"),
        ("experiment.yaml", "half"),
        ("vocabulary.parquet", "half"),
        ("vocabulary.parquet", "flip"),
        ("vocabulary.parquet", "missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path, experiment, model, synthetic_vocabulary, caplog, name, how
):
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.query.weight.add_(1)
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    assert_same_state(load(tmp_path).model.state_dict(), model.state_dict())
    assert not caplog.messages
    spoil(tmp_path / "checkpoint" / name, how)
    assert_same_state(load(tmp_path).model.state_dict(), before)
    assert f"checkpoint/{name}" in caplog.messages[0]
    assert "using the one before it" in caplog.messages[0]
    spoil(tmp_path / ".checkpoint.old" / name, how)
    with pytest.raises(InputError, match=rf"checkpoint/{name}: .*; restore it from a copy"):
        load(tmp_path)


def test_a_pickle_is_refused_as_a_checkpoint_and_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    path = tmp_path / "model.pt"
    for write in (lambda: torch.save(Bomb(), path), lambda: path.write_bytes(pickle.dumps(Bomb()))):
        write()
        with pytest.raises(InputError, match=r"model\.pt: a pickle runs code when it is read"):
            load(path)
    (tmp_path / "experiment.yaml").write_text("family: set_vae")
    path.rename(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"damaged .a pickle, which runs code when it is read"):
        load(tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("how", ["half", "flip", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "progress.yaml"])
def test_a_damaged_state_is_named_and_training_goes_on_from_the_one_before(
    tmp_path, caplog, name, how
):
    model = tiny()
    optimizer = make_optimizer(model, TrainConfig())
    for number in (1, 2):
        step(model, optimizer)
        save_state(tmp_path, model, moments_of(optimizer), Progress(step=number))
        if number == 1:
            before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    newest = tmp_path / "state" / f"{2:012d}" / name
    if (name, how) == ("progress.yaml", "flip"):
        newest.write_text(newest.read_text().replace("step: 2", "step: 3"))
    else:
        spoil(newest, how)
    other = tiny()
    if (name, how) == ("progress.yaml", "flip"):
        with pytest.raises(InputError, match=r"progress.yaml: step 3"):
            load_state(tmp_path, other, make_optimizer(other, TrainConfig()))
        return
    assert saved_progress(tmp_path).step == 1
    assert f"{2:012d}/{name}" in caplog.messages[0]
    assert load_state(tmp_path, other, make_optimizer(other, TrainConfig())).step == 1
    assert_same_state(other.state_dict(), before)
    spoil(tmp_path / "state" / f"{1:012d}" / name, "half")
    with pytest.raises(InputError, match="no older state is whole; restore it, or remove"):
        saved_progress(tmp_path)
    save_state(tmp_path, model, moments_of(optimizer), Progress(step=1))
    assert [p.name for p in (tmp_path / "state").iterdir()] == [f"{1:012d}"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("at", ["write", "sync", "rename"])
def test_a_full_or_read_only_disk_is_one_line_and_leaves_the_last_checkpoint(
    tmp_path, experiment, model, synthetic_vocabulary, monkeypatch, code, at
):
    optimizer = make_optimizer(model, experiment.train)
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    save_state(tmp_path, model, moments_of(optimizer), Progress(step=1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def full(*_, **__):
        raise OSError(code, os.strerror(code))

    with torch.no_grad():
        model.query.weight.add_(1)
    target = {"write": (Path, "write_text"), "sync": (os, "fsync"), "rename": (Path, "rename")}
    with monkeypatch.context() as patch:
        patch.setattr(*target[at], full)
        for save in (
            lambda: save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary),
            lambda: save_state(tmp_path, model, moments_of(optimizer), Progress(step=2)),
        ):
            with pytest.raises(RunError, match=rf"{tmp_path}.*{os.strerror(code)}; .* again"):
                save()
    assert_same_state(load(tmp_path).model.state_dict(), before)
    assert saved_progress(tmp_path).step == 1
    left = {p.name for p in [*tmp_path.iterdir(), *(tmp_path / "state").iterdir()]}
    assert left == {"checkpoint", "state", f"{1:012d}"}


def test_a_real_limit_while_the_weights_are_written_keeps_the_last_state(tmp_path):
    code = (
        "import resource, signal, sys; from pathlib import Path; from torch import nn\n"
        "from ehr_ray.config.sections import TrainConfig; from ehr_ray.errors import RunError\n"
        "from ehr_ray.train.checkpoint import Progress, moments_of, save_state\n"
        "from ehr_ray.train.optim import make_optimizer\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "model = nn.Linear(300, 300); optimizer = make_optimizer(model, TrainConfig())\n"
        "save_state(Path(sys.argv[1]), model, moments_of(optimizer), Progress(step=1))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try: save_state(Path(sys.argv[1]), model, moments_of(optimizer), Progress(step=2))\n"
        "except RunError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "File too large; raise the limit on the size of a file" in done.stdout, done.stderr
    assert done.stdout.count("\n") == 1
    assert saved_progress(tmp_path).step == 1
    assert [p.name for p in (tmp_path / "state").iterdir()] == [f"{1:012d}"]


def test_order_is_by_step_whatever_the_clock_was(tmp_path):
    model = tiny()
    optimizer = make_optimizer(model, TrainConfig())
    for number, year in ((1, 2038), (2, 1980)):
        save_state(tmp_path, model, moments_of(optimizer), Progress(step=number))
        for path in (tmp_path / "state" / f"{number:012d}").iterdir():
            os.utime(path, (year * 3e7, year * 3e7))
        os.utime(path.parent, (year * 3e7, year * 3e7))
    assert saved_progress(tmp_path).step == 2
