from itertools import pairwise

import pytest
import torch
from torch import nn

from ehr_ray.config.sections import LayerConfig, TrainConfig
from ehr_ray.errors import ConfigError
from ehr_ray.train.members import Members
from ehr_ray.train.optim import (
    drop_held,
    freeze,
    learning_rate,
    make_optimizer,
    set_lr,
    set_weight_decay,
    weight_decay,
)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.out = nn.Linear(4, 1)


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_only_matrices_decay():
    model = Model()
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.3))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert {name for name, d in found.items() if d == 0.3} == {"encoder.0.weight", "out.weight"}
    assert {name for name, d in found.items() if d == 0} == set(found) - {
        "encoder.0.weight",
        "out.weight",
    }


def test_on_the_cpu_a_step_is_one_pass_and_moves_weights_as_the_plain_one_does():
    torch.manual_seed(0)
    ours, theirs = Model(), Model()
    theirs.load_state_dict(ours.state_dict())
    steps = make_optimizer(ours, TrainConfig(lr=0.01)), make_optimizer(theirs, TrainConfig(lr=0.01))
    assert steps[0].defaults["fused"]
    for group in steps[1].param_groups:
        group["fused"] = False
    for _ in range(3):
        for model, optimizer in zip((ours, theirs), steps, strict=True):
            optimizer.zero_grad()
            model.out(model.encoder(model.embed.weight)).square().sum().backward()
            optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_freezing_is_by_full_match_and_frozen_parameters_are_not_optimised():
    model = Model()
    freeze(model, ["encoder\\.0\\..*", "embed.weight"])
    assert trainable(model) == {"encoder.1.weight", "encoder.1.bias", "out.weight", "out.bias"}
    optimizer = make_optimizer(model, TrainConfig())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4


@pytest.mark.parametrize("pattern", ["encoder", "ut.weight", "nope.*"])
def test_a_pattern_without_a_match_is_refused_with_names(pattern):
    with pytest.raises(ConfigError, match=r"matches no parameter; names are like embed\.weight"):
        freeze(Model(), [pattern])


def test_a_broken_pattern_and_freezing_everything_are_refused():
    with pytest.raises(ConfigError, match="no regular expression"):
        freeze(Model(), ["("])
    with pytest.raises(ConfigError, match="nothing to train"):
        freeze(Model(), [".*"])


def rates(total=100, **changes):
    plan = TrainConfig(**{"lr": 2.0, "warmup_steps": 10, "min_lr_ratio": 0.1, **changes})
    return [learning_rate(step, total, plan) for step in range(total + 1)]


def test_warm_up_rises_evenly_to_the_peak():
    found = rates()
    torch.testing.assert_close(found[:10], [0.2 * (i + 1) for i in range(10)])
    assert found[10] == max(found) == 2.0


def test_a_warm_up_may_be_counted_in_epochs():
    plan = TrainConfig(lr=2.0, warmup_steps=3, warmup_epochs=2)
    found = [learning_rate(step, 1000, plan, steps_per_epoch=10) for step in range(21)]
    assert found == pytest.approx([0.1 * (step + 1) for step in range(20)] + [2.0])


def test_weights_decay_by_the_rate_alone_whatever_their_gradient():
    """AdamW (Loshchilov and Hutter 2019): a penalty in the gradient would be lost in its scale."""
    shares = []
    for gradient in (0.0, 1.0):
        model = Model()
        optimizer = make_optimizer(model, TrainConfig(lr=0.1, weight_decay=0.3))
        before = model.out.weight.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        step = 0.1 * gradient  # the first step of Adam is as long as the rate
        shares.append((model.out.weight.detach() + step) / before)
    assert all(torch.allclose(s, torch.tensor(0.97), atol=1e-4) for s in shares)


@pytest.mark.parametrize(("shape", "middle"), [("linear", 1.1), ("cosine", 1.1), ("constant", 2.0)])
def test_the_rate_falls_from_the_peak_to_the_minimum(shape, middle):
    found = rates(lr_schedule=shape)
    assert found[55] == pytest.approx(middle)
    assert found[100] == pytest.approx(2.0 if shape == "constant" else 0.2)
    assert all(a >= b for a, b in pairwise(found[10:]))
    if shape == "cosine":
        assert found[20] > rates(lr_schedule="linear")[20]


def test_runs_shorter_than_the_warm_up_only_warm_up():
    assert rates(total=5) == pytest.approx([0.2 * (i + 1) for i in range(6)])
    assert rates(total=3, warmup_steps=0)[0] == 2.0


def test_weight_decay_rises_along_a_cosine_and_biases_have_none_throughout():
    plan = TrainConfig(weight_decay=0.0, final_weight_decay=0.4)
    assert [weight_decay(s, 100, plan) for s in (0, 50, 100)] == pytest.approx([0, 0.2, 0.4])
    assert weight_decay(25, 100, plan) < 0.1
    assert weight_decay(70, 100, TrainConfig(weight_decay=0.03)) == 0.03
    model = Model()
    optimizer = make_optimizer(model, plan)
    set_weight_decay(optimizer, 0.2)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert {name for name, d in found.items() if d == 0.2} == {"encoder.0.weight", "out.weight"}
    assert set(found.values()) == {0.0, 0.2}


def test_rules_of_layers_and_of_freezing_name_what_every_member_has():
    model = Members([Model(), Model()])
    plan = TrainConfig(layers={r"encoder\..*": LayerConfig(lr_ratio=0.1)})
    ratio = {
        id(p): group["lr_ratio"]
        for group in make_optimizer(model, plan).param_groups
        for p in group["params"]
    }
    for member in model.members:
        slow = {name for name, p in member.named_parameters() if ratio[id(p)] == 0.1}
        assert slow == {name for name in trainable(Model()) if name.startswith("encoder.")}
    freeze(model, ["embed.weight"])
    assert all(
        trainable(member) == trainable(Model()) - {"embed.weight"} for member in model.members
    )
    with pytest.raises(ConfigError, match=r"matches no parameter; names are like embed\.weight"):
        make_optimizer(model, TrainConfig(layers={r"members\..*": LayerConfig()}))


def layered(layers):
    plan = TrainConfig(layers={name: LayerConfig(**options) for name, options in layers.items()})
    model = Model()
    return model, make_optimizer(model, plan)


def trained_at(model, optimizer, epoch):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model.out(model.encoder(model.embed(torch.tensor([1, 2])))).sum().backward()
    set_lr(optimizer, 0.1, epoch)
    drop_held(optimizer)
    optimizer.step()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def test_a_layer_is_trained_from_its_epoch_on_and_held_before():
    model, optimizer = layered({"encoder.*": {"from_epoch": 2}})
    assert not any(name.startswith("encoder") for name in trained_at(model, optimizer, 1.9))
    assert optimizer.state[model.encoder[0].weight] == {}
    assert {"encoder.0.weight", "out.weight"} <= trained_at(model, optimizer, 2.0)


def test_a_layer_has_its_own_learning_rate_and_the_first_pattern_counts():
    model, optimizer = layered({"out.weight": {"lr_ratio": 0.5}, "out.*": {"lr_ratio": 0.1}})
    set_lr(optimizer, 2.0, 0.0)
    rate = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rate[id(model.out.weight)] == pytest.approx(1.0)
    assert rate[id(model.out.bias)] == pytest.approx(0.2)
    assert rate[id(model.embed.weight)] == pytest.approx(2.0)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"train\.layers: 'nope' matches no parameter"):
        layered({"nope": {"lr_ratio": 0.5}})
    with pytest.raises(ConfigError, match="no regular expression"):
        layered({"(": {"lr_ratio": 0.5}})


def test_a_plateau_halves_the_rate_down_to_the_lowest():
    plan = TrainConfig(lr=1.0, lr_schedule="plateau", warmup_steps=2, min_lr_ratio=0.2)
    assert learning_rate(0, 100, plan) == 0.5
    assert [learning_rate(50, 100, plan, n) for n in range(4)] == [1.0, 0.5, 0.25, 0.2]


def test_restarts_begin_anew_after_periods_that_are_counted_in_epochs():
    config = TrainConfig(
        lr=1.0,
        lr_schedule="restarts",
        restart_epochs=2,
        restart_factor=2,
        min_lr_ratio=0.0,
        warmup_steps=0,
    )
    per_epoch = 10
    rates = [learning_rate(step, 10**6, config, 0, per_epoch) for step in range(140)]
    assert rates[0] == rates[20] == rates[60] == 1
    assert rates[19] < 0.01
    assert rates[59] < 0.01
    assert rates[10] == pytest.approx(0.5)
    assert rates[40] == pytest.approx(0.5)


def test_points_and_queries_that_a_model_holds_by_itself_do_not_decay():
    model = Model()
    model.points = nn.Parameter(torch.ones(3, 4))
    model.map, model.decayed = nn.Parameter(torch.ones(3, 4)), ("map",)
    decayed = {
        id(p)
        for group in make_optimizer(model, TrainConfig()).param_groups
        for p in group["params"]
        if group["weight_decay"]
    }
    assert id(model.points) not in decayed
    assert id(model.map) in decayed
    assert id(model.out.weight) in decayed
