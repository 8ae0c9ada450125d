"""By `aot_eager`, which traces and differentiates as `inductor` does, and runs the same kernels."""

import dataclasses

import pytest
import torch
from killed import Killed, kill_at
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters

from ehr_ray.errors import ConfigError, RunError
from ehr_ray.family import Term
from ehr_ray.nn.transformer import Block
from ehr_ray.registry import get_family
from ehr_ray.train import compiled, history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import load
from ehr_ray.train.compiled import compile_blocks
from ehr_ray.train.loop import train
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import make_optimizer
from ehr_ray.train.report import Watch
from ehr_ray.train.step import OptimizerStep

CPU = torch.device("cpu")
SHORT = {"train.max_epochs": 2, "train.max_steps": 5, "train.report_steps": 2}
COMPILED = ("event_transformer", "hcat", "jepa", "seqset_poe")


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Compile without a compiler of C++, and count anew what is compiled."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def run(tiny_experiment, make_loader, synthetic_vocabulary):
    """Train a family into a folder: run(family, folder, {path: value}, watch)."""

    def start(name, folder, changes=None, watch=None):
        experiment = tiny_experiment(name, {**SHORT, **(changes or {})})
        family, loader = get_family(name), make_loader(experiment)
        arguments = (experiment, family, synthetic_vocabulary, loader, LocalBackend(), folder)
        train(*arguments, watch or Watch())
        return folder

    return start


def state_of(folder):
    state = max((folder / "state").glob("[0-9]*"))
    return load_file(state / "model.safetensors") | load_file(state / "optimizer.safetensors")


def blocks_of(*settings):
    torch.manual_seed(0)
    return nn.ModuleList(Block(8, 2, *settings) for _ in range(3))


def graphs():
    """How many graphs there are besides the one that is tried first."""
    return counters["stats"]["unique_graphs"] - 1


def test_blocks_alike_are_one_graph_a_shape_without_breaks():
    blocks = blocks_of(0.1)
    compile_blocks(blocks, "default", "model", CPU)
    found = []
    for length in (5, 7, 5, 9, 7):
        for block in blocks:
            block(torch.zeros(2, length, 8), None, True, None)
        found.append(graphs())
    assert found == [1, 2, 2, 3, 3]
    assert not counters["graph_break"]


def test_what_is_not_trained_is_not_compiled():
    blocks = blocks_of(0.0)
    compile_blocks(blocks, "default", "model", CPU)
    with torch.no_grad():
        blocks[0](torch.zeros(2, 5, 8), None, True, None)
    assert graphs() == 0
    assert [name for name in blocks.state_dict() if "orig" in name or "compiled" in name] == []


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_run_is_the_plain_one_without_breaks(name, run, tmp_path):
    """Up to rounding: lengths are rounded up. Checkpoints are those of a plain model, and load."""
    changes = {"model.dropout": 0.0} if name != "seqset_poe" else {}
    plain = run(name, tmp_path / "plain", changes)
    here = run(name, tmp_path / "compiled", {**changes, "train.compile": "default"})
    assert graphs() > 0
    assert not counters["graph_break"]
    ours, theirs = (history.read(f).drop(columns=["seconds", "data_wait"]) for f in (here, plain))
    assert list(ours) == list(theirs)
    losses = [n for n in ours if n.startswith("train/")]
    torch.testing.assert_close(
        *(torch.tensor(frame[losses].to_numpy()) for frame in (ours, theirs)), rtol=1e-3, atol=1e-4
    )
    assert state_of(here).keys() == state_of(plain).keys()
    shapes = [load(folder).model.state_dict() for folder in (here, plain)]
    assert shapes[0].keys() == shapes[1].keys()


def assert_resumes(run, folder):
    """In a new process nothing is compiled yet, and other lengths come first."""
    changes = {"train.compile": "default", "model.dropout": 0.2}
    run("jepa", folder / "whole", changes)
    torch._dynamo.reset()
    with pytest.raises(Killed):
        run("jepa", folder / "cut", changes, kill_at(3))
    torch._dynamo.reset()
    run("jepa", folder / "cut", changes)
    ours, theirs = state_of(folder / "cut"), state_of(folder / "whole")
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_a_killed_run_goes_on_bit_for_bit(run, tmp_path):
    assert_resumes(run, tmp_path)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit_with_kernels_of_its_own(run, tmp_path, monkeypatch):
    """What inductor makes for a shape does not depend on the shapes before; it takes minutes."""
    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    assert_resumes(run, tmp_path)


def test_activations_are_computed_again_with_the_same_dropout(run, tmp_path):
    changes = {"train.compile": "default", "model.dropout": 0.2}
    kept = run("event_transformer", tmp_path / "kept", changes)
    changes["train.activation_checkpointing"] = True
    again = run("event_transformer", tmp_path / "again", changes)
    ours, theirs = state_of(again), state_of(kept)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_train_compiled_blocks_as_one_does(
    strategy, tiny_experiment, make_loader, train_ranks, tmp_path
):
    cluster = {"cluster.num_workers": 2, "cluster.strategy": strategy}
    found = []
    for how in ("none", "default"):
        changes = {**SHORT, **cluster, "train.compile": how, "train.max_steps": 2}
        experiment = tiny_experiment("event_transformer", changes)
        assert train_ranks(tmp_path / how, experiment, make_loader(experiment), 2) == [0, 0]
        found.append(torch.load(tmp_path / how / "end-1.pt"))
    torch.testing.assert_close(*found, rtol=1e-4, atol=2e-5)


def test_families_without_blocks_and_graphs_off_a_gpu_are_refused(run, tmp_path):
    for name in ("set_vae", "vitals_vae"):
        with pytest.raises(ConfigError, match=f"^train.compile=default: this {name} has no"):
            run(name, tmp_path / name, {"train.compile": "default"})
    with pytest.raises(ConfigError, match=r"^train\.compile=reduce-overhead records graphs"):
        run("jepa", tmp_path / "jepa", {"train.compile": "reduce-overhead"})


def test_without_a_compiler_the_remedy_is_one_line(monkeypatch):
    def broken(_graph, _inputs):
        raise RuntimeError("No working C++ compiler found\nin a very long list")

    monkeypatch.setattr(compiled, "BACKEND", broken)
    with pytest.raises(ConfigError) as told:
        compile_blocks(blocks_of(0.0), "default", "model", CPU)
    line = str(told.value)
    assert "No working C++ compiler found" in line
    assert "\n" not in line
    assert line.endswith("install a C++ compiler, such as g++, or set it to none")


def test_a_machine_without_gcc_is_told_so(monkeypatch):
    """By the compiler that runs use, which finds none."""
    from torch._inductor import config

    monkeypatch.setattr(compiled, "BACKEND", "inductor")
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "fx_graph_cache", False)
    with pytest.raises(ConfigError, match=r"torch cannot compile here .*set it to none"):
        compile_blocks(blocks_of(0.0), "default", "model", CPU)


def test_more_shapes_than_are_compiled_are_one_line_with_the_remedy(monkeypatch):
    monkeypatch.setattr(compiled, "MOST_SHAPES", 2)
    (block, *_), lengths = blocks_of(0.0), (5, 7)
    compile_blocks(nn.ModuleList([block]), "default", "model", CPU)
    with torch._dynamo.config.patch(recompile_limit=2):
        for length in lengths:
            block(torch.zeros(2, length, 8), None, True, None)
        with pytest.raises(RunError) as told:
            block(torch.zeros(2, 9, 8), None, True, None)
    line = str(told.value)
    assert line.startswith("train.compile=default: blocks met more than 2 shapes")
    assert line.endswith("; set it to none")


def test_graphs_of_a_gpu_are_told_where_a_step_begins(monkeypatch, tiny_experiment):
    told = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(1))

    def loss(model, batch, _scheduled, _seed):
        return {"fit": Term(model(batch["x"]).sum(), torch.tensor(2.0))}

    for how, marks in (("none", 0), ("reduce-overhead", 1)):
        experiment = tiny_experiment(changes={"train.compile": how})
        family = dataclasses.replace(get_family("set_vae"), loss=loss)
        family = dataclasses.replace(
            family, training=dataclasses.replace(family.training, counts=None, held=None)
        )
        model, backend = nn.Linear(1, 1), LocalBackend()
        optimizer = make_optimizer(model, experiment.train)
        step = OptimizerStep(experiment, family, model, optimizer, backend, Sums(backend))
        step([{"x": torch.ones(2, 1)}], {}, 7)
        assert len(told) == marks


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train.accumulate": 2}, r"graphs keep gradients .* train\.accumulate=2; set that to 1"),
        (
            {"train.activation_checkpointing": True},
            r"with train\.activation_checkpointing=true graphs would be replayed .* give default",
        ),
        (
            {"cluster.strategy": "fsdp", "cluster.num_workers": [1, 2]},
            r"with cluster\.strategy=fsdp graphs would be recorded at each step; give default",
        ),
    ],
)
def test_graphs_with_what_moves_their_memory_are_refused_with_the_config(
    changes, line, tiny_experiment
):
    changes = {"cluster.num_workers": 1, "cluster.strategy": "ddp", **changes}
    tiny_experiment("jepa", {**changes, "train.compile": "default"})
    with pytest.raises(ConfigError, match=f"^train.compile=reduce-overhead: {line}"):
        tiny_experiment("jepa", {**changes, "train.compile": "reduce-overhead"})
