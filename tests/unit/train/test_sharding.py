import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from killed import Killed, kill_at
from safetensors.torch import load_file
from torch import nn

from ehr_ray.config.sections import TrainConfig
from ehr_ray.errors import ConfigError
from ehr_ray.events.blocks import BlockStore
from ehr_ray.experiment import to_yaml
from ehr_ray.nn.transformer import Block
from ehr_ray.registry import get_family
from ehr_ray.train import history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import saved_progress
from ehr_ray.train.loop import train
from ehr_ray.train.optim import make_optimizer
from ehr_ray.train.report import Watch
from ehr_ray.train.sharding import divided_as, full, gathered, plain, sharded, whole

SHORT = {"train.max_epochs": 2, "train.max_steps": 4, "train.report_steps": 2}
CASES = {
    "event_transformer": {
        "freeze": [r"project\..*", r"blocks\.0\..*"],
        "train.activation_checkpointing": True,
        "train.clip": 0.1,
    },
    "jepa": {"train.weight_decay": 0.5, "schedules.momentum": 0.9, "train.keep_steps": 3},
    "set_vae": {"train.accumulate": 2, "train.clip": 0.1},
    "seqset_poe": {"data.batch_size": 21},
    "vitals_vae": {"model.arch": "vq", "model.codebook": 16},
    "hcat": {"model.missing": "mask"},
}
"""What is changed besides of a family, so that each thing a step does is seen in one of them."""


@pytest.fixture
def make(tiny_experiment):
    """The experiment of a family under a strategy, of few steps."""

    def build(name, strategy, changes=None):
        cluster = {"cluster.num_workers": 2, "cluster.strategy": strategy}
        return tiny_experiment(name, {**SHORT, **cluster, **CASES[name], **(changes or {})})

    return build


@pytest.fixture
def alone(make_loader, synthetic_vocabulary):
    """Train in this process, on what ranks in a folder train on."""

    def run(experiment, folder, watch=None):
        files = {n: BlockStore([folder / f"{n}.arrow"]) for n in ("train", "tuning")}
        loader = dataclasses.replace(make_loader(experiment), **files)
        family = get_family(experiment.family)
        arguments = (experiment, family, synthetic_vocabulary, loader, LocalBackend())
        train(*arguments, folder / "run", watch or Watch())

    return run


def state_of(folder):
    state = max((folder / "run" / "state").glob("[0-9]*"))
    files = (load_file(state / f"{name}.safetensors") for name in ("model", "optimizer"))
    return [{name: tensor.double() for name, tensor in file.items()} for file in files]


def rows_of(folder):
    rows = history.read(folder / "run").drop(columns=["seconds", "data_wait"])
    # Padding depends on what is batched together.
    return rows.drop(columns=[name for name in rows if name.endswith("padding")])


def assert_close(a, b, rtol=1e-4, atol=2e-5):
    """Losses, weights and moments, up to the order of sums."""
    ours, theirs = rows_of(a), rows_of(b)
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=1e-5)
    for mine, other in zip(state_of(a), state_of(b), strict=True):
        # Biases of keys have no gradient but rounding, which Adam makes as large as any other.
        mine, other = (
            {k: v for k, v in part.items() if not k.endswith("query_key_value.bias")}
            for part in (mine, other)
        )
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)


def assert_same(a, b):
    assert rows_of(a).equals(rows_of(b))
    for mine, other in zip(state_of(a), state_of(b), strict=True):
        assert mine.keys() == other.keys()
        assert [name for name in mine if not torch.equal(mine[name], other[name])] == []


@pytest.mark.parametrize("name", sorted(CASES))
def test_ranks_that_share_a_model_train_as_ddp_and_as_one_do(
    name, make, make_loader, train_ranks, alone, tmp_path
):
    """Frozen parts, a target network, accumulation, decay and clipping among them."""
    for strategy in ("ddp", "fsdp"):
        experiment = make(name, strategy)
        folder, loader = tmp_path / strategy, make_loader(experiment)
        assert train_ranks(folder, experiment, loader, 2) == [0, 0]
    assert_close(tmp_path / "fsdp", tmp_path / "ddp")
    train_ranks(tmp_path / "alone", experiment, loader, 0)  # writes what is trained on
    alone(experiment, tmp_path / "alone")
    assert_close(tmp_path / "fsdp", tmp_path / "alone", rtol=1e-3, atol=1e-4)
    first, second = (
        torch.load(tmp_path / "fsdp" / f"end-{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    make, make_loader, train_ranks, tmp_path
):
    experiment = make("jepa", "fsdp")
    loader = make_loader(experiment)
    assert train_ranks(tmp_path / "whole", experiment, loader, 2) == [0, 0]
    assert train_ranks(tmp_path / "cut", experiment, loader, 2, last=3)[0] == 9
    assert saved_progress(tmp_path / "cut" / "run").step == 2
    assert train_ranks(tmp_path / "cut", experiment, loader, 2) == [0, 0]
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_a_run_goes_on_under_the_other_strategy_and_alone(
    make, make_loader, train_ranks, alone, tmp_path
):
    """By ddp to step 2, shared to step 4, alone to 6, and shared again to the end at 8."""
    changes = {"train.max_epochs": 3, "train.max_steps": 8}
    folder, start = tmp_path / "changed", make("event_transformer", "ddp", changes)
    loader = make_loader(start)
    for strategy, last in (("ddp", 3), ("fsdp", 5), ("alone", 7), ("fsdp", None)):
        if strategy == "alone":
            with pytest.raises(Killed):
                alone(start, folder, kill_at(last))
        else:
            experiment = make("event_transformer", strategy, changes)
            folder.mkdir(exist_ok=True)
            if (folder / "experiment.yaml").is_file():
                (folder / "experiment.yaml").write_text(to_yaml(experiment))
            codes = train_ranks(folder, experiment, loader, 2, last)
            assert codes == [0, 0] if last is None else codes[0] == 9
        assert saved_progress(folder / "run").step == (last or 9) - 1
    train_ranks(tmp_path / "alone", start, loader, 0)
    alone(start, tmp_path / "alone")
    assert_close(folder, tmp_path / "alone", rtol=1e-3, atol=1e-4)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.block = nn.Linear(3, 8), Block(8, 2, 0.0)
        self.seed = nn.Parameter(torch.ones(1, 8))
        self.register_buffer("table", torch.zeros(4))
        self.register_buffer("own", torch.tensor([False, True]), persistent=False)

    def forward(self, x):
        return self.block(self.enter(x) * self.own[1], None, True, None) + self.seed


def share_and_step(folder, rank, world):
    """Share a model that each rank has begun otherwise, and train a step."""
    place = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    torch.manual_seed(rank)
    module = Small()
    module.table.fill_(1.0 + rank)
    module.enter.requires_grad_(False)
    begun = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = sharded(module, torch.device("cpu"))
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.1))
    model(torch.ones(2, 5, 3)).square().sum().backward()
    optimizer.step()
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [s[k] for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")]
    module.table.add_(1)
    with whole(model) as twin:
        assert twin is plain(model)
        assert type(twin) is Small
        alone = twin(torch.ones(1, 5, 3)) if rank == 0 else None  # no rank waits for another
        state = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    assert all(p.is_meta for p in twin.parameters())
    entire = torch.arange(15.0).reshape(5, 3)
    part = divided_as(torch.zeros(8, 3), model.enter.weight)
    told = {
        "begun": begun,
        "state": state,
        "alone": alone,
        "held": sum(tensor.to_local().numel() for tensor in tensors),
        "all": sum(tensor.numel() for tensor in tensors),
        "decays": [
            [n for n, p in model.named_parameters() if any(p is q for q in group["params"])]
            for group in optimizer.param_groups
        ],
        "kept": sorted(gathered(dict(model.named_parameters()), keep=rank == 0)),
        "part": (tuple(part.shape), part.to_local().untyped_storage().nbytes()),
        "other": divided_as(entire, model.enter.weight) is entire,
    }
    torch.save(told, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def told(forked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    assert forked(share_and_step, folder, 2) == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_each_rank_holds_its_part_of_weights_gradients_and_moments(told):
    held = [rank["held"] for rank in told]
    assert sum(held) == told[0]["all"]
    assert min(held) > 0.45 * told[0]["all"]
    # Of an axis of one the first rank has all; a part keeps no memory of the rest.
    assert [rank["part"] for rank in told] == [((8, 3), 4 * 3 * 4)] * 2
    assert all(rank["other"] for rank in told)


def test_ranks_begin_as_the_first_one_and_are_whole_alike(told):
    begun, first, second = told[0]["begun"], told[0]["state"], told[1]["state"]
    assert first.keys() == second.keys() == begun.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    same = {name for name in first if torch.equal(first[name], begun[name])}
    assert same == {"enter.weight", "enter.bias"}  # frozen
    assert first["table"].tolist() == [2.0] * 4
    expected = Small()
    expected.load_state_dict(first)
    torch.testing.assert_close(told[0]["alone"], expected(torch.ones(1, 5, 3)))
    assert [len(rank["kept"]) for rank in told] == [len(begun) - 1, 0]


def test_the_same_parameters_decay_as_in_a_whole_model(told):
    module = Small()
    module.enter.requires_grad_(False)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = make_optimizer(module, TrainConfig(weight_decay=0.1)).param_groups
    expected = [[names[id(p)] for p in group["params"]] for group in groups]
    assert len(expected) == 2
    assert told[0]["decays"] == told[1]["decays"] == expected


def test_a_model_that_is_not_divided_is_itself():
    model = nn.Linear(2, 2)
    assert plain(model) is model
    with whole(model) as itself:
        assert itself is model
    assert full(model.weight) is model.weight
    assert divided_as(model.bias, model.bias) is model.bias
    assert gathered({"a": model.bias}, keep=False) == {}


def test_a_single_number_is_refused_by_its_name():
    module = nn.Module()
    module.doubt = nn.Parameter(torch.zeros(()))
    with pytest.raises(ConfigError, match=r"^cluster.strategy=fsdp: doubt is a single number, "):
        sharded(module, torch.device("cpu"))
