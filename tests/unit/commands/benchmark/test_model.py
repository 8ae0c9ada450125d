from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from ehr_ray.commands.benchmark import model
from ehr_ray.commands.benchmark.model import model_speed
from ehr_ray.errors import ConfigError, InputError
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.train import compiled


@pytest.fixture
def numbers(tiny_experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "MATRIX", 64)
    monkeypatch.setattr(model, "FEED_STEPS", 3)
    changes = {"output": str(tmp_path), "cluster.num_workers": 0, "train.accumulate": 2}
    return model_speed(tiny_experiment("vitals_vae", changes), steps=2)


def test_a_null_model_tells_what_the_feed_gives_and_its_share_of_a_step(numbers):
    step, feed = numbers["CPU ms per step"], numbers["null model, CPU ms per step"]
    assert numbers["null model, patients per second"] > 0
    assert feed > 0
    assert numbers["feed's share of a step's CPU time"] == pytest.approx(feed / (feed + step))


@pytest.mark.parametrize(
    ("family", "changes", "told"),
    [
        (
            "vitals_vae",
            {"train.compile": "default"},
            "train.compile=default: this vitals_vae has no transformer",
        ),
        (
            "vitals_vae",
            {"train.compile": "reduce-overhead"},
            "train.compile=reduce-overhead: this vitals_vae",
        ),
        (
            "set_vae",
            {"data.batch_size": 4, "train.accumulate": 8},
            "data.batch_size=4 over .* fewer than 1 workers x 8 micro-batches; raise",
        ),
        (
            "jepa",
            {"data.batch_size": 4, "train.accumulate": 2, "model.latent_loss": "infonce"},
            "model.latent_loss=infonce compares the patients of a micro-batch",
        ),
        (
            "vitals_vae",
            {"model.first_hour": 600, "model.last_hour": 647},
            "train split: none of .* has a vital sign in the window",
        ),
        (
            "set_vae",
            {"model.embedding_csv": "missing.csv"},
            "model.embedding_csv=missing.csv: nothing there; check the path",
        ),
    ],
)
def test_what_training_would_refuse_or_do_elsewhere_is_not_measured(
    family, changes, told, tiny_experiment, tmp_path
):
    with pytest.raises((ConfigError, InputError), match=f"^{told}"):
        model_speed(tiny_experiment(family, {"output": str(tmp_path), **changes}))


def test_a_step_ends_with_what_the_family_does_after_it(tiny_experiment, tmp_path):
    """As a moving average, with the values that the loss had."""
    constant = {"kind": "constant", "value": 0.9}
    changes = {"output": str(tmp_path), "train.lr": 0.1, "schedules.momentum": constant}
    experiment = tiny_experiment("jepa", changes)
    family, losses, moved = get_family("jepa"), [], []

    def loss(model, batch, scheduled, seed):
        losses.append(scheduled)
        return family.loss(model, batch, scheduled, seed)

    def after_step(model, scheduled):
        moved.append((len(losses), scheduled))
        family.training.after_step(model, scheduled)

    training = replace(family.training, after_step=after_step)
    with prepared(experiment, family, on_ray=False) as data:
        trainer = model.Trainer(experiment, replace(family, loss=loss, training=training), data)
        batches = trainer.batches()
        before = [weight.clone() for weight in trainer.model.target.parameters()]
        for _ in range(2):
            trainer.step(next(batches))
        batches.close()
    assert moved == [(1, losses[0]), (2, losses[1])]
    assert "momentum" in losses[0]
    after = [*trainer.model.target.parameters()]
    assert not all(map(torch.equal, before, after))


def test_compiled_blocks_are_measured_once_all_shapes_are_compiled(
    tiny_experiment, tmp_path, monkeypatch
):
    """Operations are those of the model as it is written: the counter sees no compiled ones."""
    monkeypatch.setattr(model, "MATRIX", 64)
    monkeypatch.setattr(model, "FEED_STEPS", 1)
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    step, graphs, found = model.Trainer.step, [], []

    def counted(trainer, micro):
        step(trainer, micro)
        graphs.append(counters["stats"]["unique_graphs"])

    monkeypatch.setattr(model.Trainer, "step", counted)
    for how in ("none", "default"):
        graphs.clear()
        changes = {"output": str(tmp_path), "data.batch_size": 8, "train.compile": how}
        found.append(model_speed(tiny_experiment("jepa", changes), steps=2))
    assert len(graphs) == 2 * (model.WARM + 2)
    assert graphs[0] > 1  # one is tried first
    assert len({*graphs[model.WARM + 1 :]}) == 1
    assert found[0]["GFLOP per step"] == found[1]["GFLOP per step"]
