import dataclasses

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ehr_ray.errors import RunError
from ehr_ray.family import Term, Training
from ehr_ray.registry import get_family
from ehr_ray.train.backend import LocalBackend, begin_sum
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import make_optimizer
from ehr_ray.train.sharding import sharded, whole
from ehr_ray.train.step import Faults, OptimizerStep, clip, objective


def line_loss(model, batch, scheduled, seed):
    """The squared error of a line through 1, of rows weighted alike; the seed is only logged."""
    error = (model(batch["x"]) - 1).square().sum() * scheduled["weight"]
    count = torch.tensor(float(len(batch["x"])))
    return {"fit": Term(error, count), "seed": Term(torch.tensor(float(seed)), count, coef=0.0)}


def rows_told(_model, batch, _seed):
    return {"fit": torch.tensor(float(len(batch["x"])))}


@pytest.fixture
def take_step(tiny_experiment):
    """A step of plain descent on a line: take_step([[x, ...], ...], scheduled, clip)."""

    def take(parts, weight=1.0, clip=None):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        family = dataclasses.replace(get_family("set_vae"), loss=line_loss, training=Training())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.param_groups[0]["held"] = False
        experiment = tiny_experiment(changes={"train.clip": clip})
        step = OptimizerStep(
            experiment, family, model, optimizer, LocalBackend(), Sums(LocalBackend())
        )
        micro = [{"x": torch.tensor(part).unsqueeze(1)} for part in parts]
        return step(micro, {"weight": weight}, 7), float(model.weight.detach()), step.sums

    return take


@pytest.mark.parametrize("parts", [[[1.0, 2.0, 3.0]], [[1.0], [2.0, 3.0]]])
def test_a_step_follows_the_gradient_of_the_mean_over_all_micro_batches(take_step, parts):
    norm, weight, sums = take_step(parts)
    assert norm == pytest.approx(2 * (1 + 2 + 3) / 3)
    assert weight == pytest.approx(0.1 * norm)
    assert sums.means("train")["train/fit"] == pytest.approx(1.0)


@pytest.mark.parametrize(("tells", "passes"), [(True, 2), (False, 4)])
def test_micro_batches_go_forward_once_where_the_family_tells_their_counts(
    tiny_experiment, tells, passes
):
    def loss(model, batch, *drawn):
        calls.append(len(batch["x"]))
        return line_loss(model, batch, {"weight": 1.0}, 0)

    calls, model, backend = [], nn.Linear(1, 1, bias=False), LocalBackend()
    family = dataclasses.replace(
        get_family("set_vae"), loss=loss, training=Training(counts=rows_told if tells else None)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    take = OptimizerStep(tiny_experiment(), family, model, optimizer, backend, Sums(backend))
    nn.init.zeros_(model.weight)
    norm = take([{"x": torch.ones(1, 1)}, {"x": torch.tensor([[2.0], [3.0]])}], {}, 7)
    assert len(calls) == passes
    assert norm == pytest.approx(2 * (1 + 2 + 3) / 3)


class Recorded(LocalBackend):
    """One of two ranks, as far as anybody asks, which writes down when sums begin and end."""

    world = 2

    def __init__(self, events):
        super().__init__()
        self.events = events

    def begin_sum(self, values):
        self.events.append("sum begins")
        return lambda: self.events.append("sum is waited for") or values


@pytest.mark.parametrize(
    ("counts", "parts", "wanted"),
    [
        (rows_told, 1, "sum begins, forward, sum is waited for, backward"),
        (rows_told, 2, "sum begins, forward, sum is waited for, backward, forward, backward"),
        (None, 1, "forward, sum begins, sum is waited for, backward"),
    ],
)
def test_ranks_sum_their_counts_beside_the_forward_pass(tiny_experiment, counts, parts, wanted):
    def loss(model, batch, *drawn):
        events.append("forward")
        return line_loss(model, batch, {"weight": 1.0}, 0)

    events, model = [], nn.Linear(1, 1, bias=False)
    model.weight.register_hook(lambda _gradient: events.append("backward"))
    training = Training(counts=counts)
    family = dataclasses.replace(get_family("set_vae"), loss=loss, training=training)
    optimizer, backend = torch.optim.SGD(model.parameters(), lr=0.1), Recorded(events)
    take = OptimizerStep(tiny_experiment(), family, model, optimizer, backend, Sums(backend))
    take([{"x": torch.ones(1, 1)}] * parts, {}, 7)
    assert events == wanted.split(", ")


class Ranks(LocalBackend):
    """A rank of the process group."""

    def __init__(self, rank, world):
        super().__init__()
        self.rank, self.world = rank, world

    def begin_sum(self, values):
        return begin_sum(values)


def some_steps(folder, rank, world, experiment, strategy, tells):
    """Take steps on other rows by each rank; leave the weights there."""
    torch.set_num_threads(1)
    place = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world)
    torch.manual_seed(3)
    model, backend = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)), Ranks(rank, world)
    divided = strategy == "fsdp"
    wrapped = sharded(model, backend.device) if divided else DistributedDataParallel(model)
    training = Training(counts=rows_told if tells else None)
    family = dataclasses.replace(get_family("set_vae"), loss=line_loss, training=training)
    optimizer = make_optimizer(model, experiment.train)
    step = OptimizerStep(experiment, family, wrapped, optimizer, backend, Sums(backend))
    for number in range(5):
        rows = torch.arange(3.0 * (2 + 3 * rank + number)).reshape(-1, 3) / 7 - rank
        step([{"x": rows}], {"weight": 1.0}, number)
    with whole(model) as model:
        torch.save(model.state_dict(), folder / f"{rank}.pt")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_counts_that_are_summed_early_change_no_bit(strategy, tiny_experiment, forked, tmp_path):
    found = []
    for tells in (True, False):
        folder = tmp_path / str(tells)
        folder.mkdir()
        given = (some_steps, folder, 2, tiny_experiment(), strategy, tells)
        assert forked(*given) == [0, 0]
        found += [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    ours, *others = [[*weights.values()] for weights in found]
    for theirs in others:
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_step_is_as_long_as_the_clip_allows_and_tells_the_whole_norm(take_step):
    norm, weight, _ = take_step([[1.0, 2.0, 3.0]], clip=0.5)
    assert norm == pytest.approx(4.0)
    assert weight == pytest.approx(0.05, rel=1e-4)


@pytest.mark.parametrize("limit", [0.5, 6.0, None])
def test_gradients_are_clipped_as_torch_does_and_gone_through_only_for_a_reason(limit, monkeypatch):
    ours, theirs = ([nn.Parameter(torch.zeros(3)) for _ in range(2)] for _ in range(2))
    for parameter in (ours + theirs)[::2]:  # the others have none
        parameter.grad = torch.tensor([3.0, 4.0, 0.0])
    plain, scaled = nn.utils.clip_grads_with_norm_, []
    monkeypatch.setattr(
        nn.utils, "clip_grads_with_norm_", lambda *given: scaled.append(plain(*given))
    )
    assert clip(ours, limit) == nn.utils.clip_grad_norm_(theirs, limit or float("inf")) == 5
    assert torch.equal(ours[0].grad, theirs[0].grad)
    assert len(scaled) == (limit == 0.5)


def test_parts_that_are_clipped_alone_leave_each_other_s_step_as_it_is(tiny_experiment):
    model, backend = nn.ModuleDict({n: nn.Linear(1, 1, bias=False) for n in "ab"}), LocalBackend()
    for part in model.values():
        nn.init.zeros_(part.weight)

    def loss(model, batch, *_):
        errors = [size * model[name](batch["x"]).sum() for name, size in (("a", 0.1), ("b", 8.0))]
        return {"fit": Term(sum(errors), torch.tensor(1.0))}

    training = Training(clipped=lambda model: model.values())
    family = dataclasses.replace(get_family("set_vae"), loss=loss, training=training)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    experiment = tiny_experiment(changes={"train.clip": 0.5})
    take = OptimizerStep(experiment, family, model, optimizer, backend, Sums(backend))
    norm = take([{"x": torch.ones(1, 1)}], {}, 7)
    assert float(norm) == pytest.approx(8.0)
    assert float(model["a"].weight.detach()) == pytest.approx(-0.1)
    assert float(model["b"].weight.detach()) == pytest.approx(-0.5, rel=1e-4)


def test_a_gradient_that_is_not_finite_names_its_terms_and_the_scheduled_values(take_step):
    with pytest.raises(RunError, match=r"fit is not finite with weight inf; lower train\.lr"):
        take_step([[1.0, 2.0]], weight=float("inf"))


def test_the_objective_divides_by_global_counts_and_undoes_the_mean_over_ranks():
    terms = {
        "a": Term(torch.tensor(6.0), torch.tensor(2.0), coef=0.5),
        "b": Term(torch.tensor(5.0), torch.tensor(1.0)),
        "log": Term(torch.tensor(float("inf")), torch.tensor(1.0), coef=0.0),
    }
    counts = {"a": torch.tensor(4.0), "b": torch.tensor(5.0)}
    assert float(objective(terms, counts, world=1)) == 0.5 * 6 / 4 + 5 / 5
    assert float(objective(terms, counts, world=2)) == 2 * (0.5 * 6 / 4 + 5 / 5)
    empty = {"a": Term(torch.tensor(0.0), torch.tensor(0.0))}
    assert float(objective(empty, {"a": torch.tensor(0.0)}, world=1)) == 0.0


def test_of_steps_that_nobody_looked_at_the_first_that_is_not_finite_is_told():
    faults = Faults()
    assert faults.read() == ""
    good, bad = torch.tensor(1.0), torch.tensor(float("nan"))
    faults.note(good, [{"a": good, "b": good}], {"beta": 0.1})
    faults.note(bad, [{"a": good, "b": good}, {"a": good, "b": bad}], {"beta": 0.2})
    faults.note(bad, [{"a": bad, "b": bad}], {"beta": 0.3})
    assert faults.read() == "b is not finite with beta 0.2"
    faults.note(good, [{"a": bad, "b": good}], {})  # only logged: the gradient is sound
    assert faults.read() == ""
    faults.note(bad, [{"a": good, "b": good}], {})
    assert faults.read() == "gradient is not finite with no schedule"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_products_of_a_step_have_the_precision_of_the_plan(tiny_experiment, precision, dtype):
    seen = []

    def loss(model, batch, *_):
        found = model(batch["x"])
        seen.append(found.dtype)
        return {"fit": Term(found.float().square().sum(), torch.tensor(1.0))}

    experiment = tiny_experiment(changes={"train.precision": precision})
    family, model = dataclasses.replace(get_family("set_vae"), loss=loss), nn.Linear(1, 1)
    backend = LocalBackend()
    optimizer = make_optimizer(model, experiment.train)
    take = OptimizerStep(experiment, family, model, optimizer, backend, Sums(backend))
    take([{"x": torch.ones(2, 1)}], {}, 7)
    assert set(seen) == {dtype}
    # Autocast alone: no weight, gradient or moment is rounded, whatever the precision.
    moments = [value for state in optimizer.state.values() for value in state.values()]
    held = [*model.parameters(), *(p.grad for p in model.parameters()), *moments]
    assert len(held) == 2 + 2 + 6
    assert {tensor.dtype for tensor in held} == {torch.float32}
