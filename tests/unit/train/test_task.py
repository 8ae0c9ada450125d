import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ehr_ray.config.task import TaskConfig
from ehr_ray.errors import ConfigError
from ehr_ray.family import Represent
from ehr_ray.registry import get_family
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.targets import ranking_metrics
from ehr_ray.train.task import (
    LABEL,
    family_of,
    prepare_task_head,
    standardise,
    with_task,
)
from ehr_ray.train.validate import validate

SCHEDULED = {"beta": 0.1, "free_bits": 0.0}
SEED = 5


@pytest.fixture
def experiment(tiny_experiment):
    return replace(tiny_experiment(), task=TaskConfig(name="outcome"))


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(3))


FEATURES = Represent(lambda model, batch, _seed: batch["x"] @ model.weight, lambda _model: 3)


PLAIN = replace(
    get_family("set_vae"),
    build=lambda _config, _vocabulary: Plain(),
    represent=FEATURES,
    predict=lambda _model, batch: {"embedding": batch["x"]},
)


def plain_family(**task):
    return with_task(PLAIN, TaskConfig(name="outcome", dropout=0.0, hidden_dropout=0.0, **task))


def batch_of(n=40):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return {"x": x, LABEL: (x[:, 0] > 0.5).float()}


def term(family, model, batch):
    return family.loss(model.train(), batch, SCHEDULED, SEED)["task"]


def test_an_experiment_without_a_task_trains_its_family_itself(tiny_experiment, experiment):
    assert family_of(tiny_experiment()) is get_family("set_vae")
    assert family_of(experiment).select.metric == "val/auroc"


def test_a_family_without_a_representation_takes_no_task():
    with pytest.raises(ConfigError, match="set_vae has no representation"):
        with_task(replace(get_family("set_vae"), represent=None), TaskConfig(name="x"))


def test_the_loss_is_the_mean_cross_entropy():
    family = plain_family()
    model, batch = family.build(None, None), batch_of()
    found = term(family, model, batch)
    logit = model(batch, None).squeeze(1)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, batch[LABEL])
    assert float((found.sum / found.count).detach()) == pytest.approx(
        float(expected.detach()), rel=1e-6
    )


def test_balanced_weights_give_both_classes_the_same_say():
    base = plain_family()
    model, batch = base.build(None, None), batch_of()
    prevalence = float(batch[LABEL].mean())
    plain = replace(get_family("set_vae"), build=lambda *_: Plain(), represent=FEATURES)
    weighted = with_task(plain, TaskConfig(name="o", class_weight="balanced"), prevalence)
    found = term(weighted, model, batch)
    assert float(found.count) == pytest.approx(2 * float((batch[LABEL] == 0).sum()), rel=1e-5)


def test_focal_loss_turns_from_easy_rows_and_is_cross_entropy_at_gamma_zero():
    cross, focal = plain_family(), plain_family(loss="focal", focal_gamma=2.0)
    model, batch = cross.build(None, None), batch_of()
    flat = plain_family(loss="focal", focal_gamma=0.0)
    assert float(term(flat, model, batch).sum.detach()) == pytest.approx(
        float(term(cross, model, batch).sum.detach()), rel=1e-6
    )
    probability = torch.sigmoid(model(batch, None).squeeze(1))
    right = torch.where(batch[LABEL] > 0, probability, 1 - probability)
    expected = ((1 - right) ** 2 * -torch.log(right)).sum()
    assert float(term(focal, model, batch).sum.detach()) == pytest.approx(
        float(expected.detach()), rel=1e-5
    )


def test_members_start_apart_and_their_logits_are_averaged():
    family = plain_family(members=3, hidden=4)
    model, batch = family.build(None, None).eval(), batch_of()
    logits = model(batch, None)
    assert logits.shape == (40, 3)
    assert not torch.allclose(logits[:, 0], logits[:, 1])
    torch.testing.assert_close(family.predict(model, batch)["logit"], logits.mean(1))


def test_ranking_metrics_have_their_known_values():
    logit = torch.tensor([2.0, 1.0, -1.0, -2.0])
    found = ranking_metrics(logit, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert found == {"auroc": 0.75, "auprc": pytest.approx(5 / 6), "f1": 0.5}
    assert all(math.isnan(v) for v in ranking_metrics(logit, torch.ones(4)).values())


@pytest.mark.parametrize(("select", "metric"), [("f1", "val/f1"), ("loss", "val/task")])
def test_the_task_says_what_selects(select, metric):
    family = plain_family(select=select)
    assert family.select.metric == metric
    assert family.select.mode == ("min" if select == "loss" else "max")


def states(_model, batch, _seed):
    """Three states of each row, of which the last holds what decides, and a fourth that is none."""
    x = batch["x"]
    real = torch.tensor([True, True, True, False]).expand(len(x), -1)
    parts = [torch.zeros_like(x), torch.zeros_like(x), x, torch.full_like(x, 1e6)]
    return torch.stack(parts, 1), real


def test_an_attentive_head_reads_states_and_learns_what_pooling_hides():
    attentive = replace(
        PLAIN, represent=replace(FEATURES, states=states, state_width=lambda _model: 3)
    )
    task = TaskConfig(name="outcome", dropout=0.0, pool="attentive")
    family, batch = with_task(attentive, task), batch_of()
    torch.manual_seed(0)
    model = family.build(None, None)
    assert model.center.shape == (3,)
    trained = [p for n, p in model.named_parameters() if not n.startswith("base.")]
    optimizer = torch.optim.Adam(trained, lr=0.02)
    first = term(family, model, batch)
    for _ in range(60):
        optimizer.zero_grad()
        found = term(family, model, batch)
        (found.sum / found.count).backward()
        optimizer.step()
    assert found.sum < 0.65 * first.sum  # three numbers lose their size when normalised
    assert model.base.weight.grad is None


def test_a_family_without_states_takes_no_attentive_head():
    with pytest.raises(ConfigError, match="set_vae has no states to attend to"):
        with_task(PLAIN, TaskConfig(name="outcome", pool="attentive"))


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.used = torch.nn.Parameter(torch.tensor([1.0, 10.0, 0.0]))
        self.decoder = torch.nn.Linear(2, 2)


def represent(model, batch, _seed):
    return batch["x"] * model.used


@pytest.fixture
def family():
    plain = replace(
        get_family("set_vae"),
        build=lambda *_: Base(),
        represent=Represent(represent, lambda _model: 3),
    )
    return with_task(plain, TaskConfig(name="outcome", dropout=0.0))


def batches(count=4, size=50):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        x = 3 + 2 * torch.randn(size, 3, generator=generator)
        yield {"x": x, LABEL: (x[:, 0] > 3).float()}


def test_the_input_of_the_heads_is_standardised_by_what_the_batches_say(family):
    model = family.build(None, None)
    everything = torch.cat([batch["x"] for batch in batches()]) * model.base.used.detach()
    standardise(model, list(batches()), LocalBackend())
    torch.testing.assert_close(model.center, everything.mean(0), rtol=1e-4, atol=1e-4)
    expected = everything.std(0, correction=0)
    torch.testing.assert_close(model.scale[:2], expected[:2], rtol=1e-4, atol=1e-4)
    assert float(model.scale[2]) == 1.0  # a constant feature is left alone


def test_what_the_task_does_not_reach_is_frozen_and_named(family):
    model = family.build(None, None)
    unused = prepare_task_head(family, model, batches(), LocalBackend(), fresh=True)
    assert unused == ["base.decoder.weight", "base.decoder.bias"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "base.used",
        "heads.0.1.weight",
        "heads.0.1.bias",
    }
    assert all(p.grad is None for p in model.parameters())


def test_what_another_rank_reaches_is_trained_here_too(family):
    """Ranks would wait for each other's gradients if each froze what its own batch leaves out."""

    class Two(LocalBackend):
        def all_sum(self, values):
            return values + (torch.arange(len(values)) == other if values.ndim == 1 else 0)

    model = family.build(None, None)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    other = names.index("base.decoder.bias")
    unused = prepare_task_head(family, model, batches(), Two(), fresh=False)
    assert unused == ["base.decoder.weight"]


def test_a_resumed_run_keeps_the_scale_it_started_with(family):
    model = family.build(None, None)
    prepare_task_head(family, model, batches(), LocalBackend(), fresh=False)
    assert torch.equal(model.center, torch.zeros(3))
    assert torch.equal(model.scale, torch.ones(3))


def test_validation_runs_the_model_of_a_task_once_a_batch(family):
    loader, calls = SimpleNamespace(tuning_batches=lambda _rank, _world: batches(3)), []
    model = family.build(None, None)
    model.register_forward_hook(lambda *_: calls.append(1))
    values = validate(family, model, loader, LocalBackend(), precision="float32")
    assert len(calls) == 3
    with torch.no_grad():
        found = [family.loss(model.eval(), batch, SCHEDULED, SEED) for batch in batches(3)]
    terms = [each["task"] for each in found]
    mean = sum(float(t.sum) for t in terms) / sum(float(t.count) for t in terms)
    assert values["val/task"] == pytest.approx(mean)
    logit = torch.cat([model(batch, None).mean(1) for batch in batches(3)]).detach()
    label = torch.cat([batch[LABEL] for batch in batches(3)])
    assert values["val/auroc"] == pytest.approx(ranking_metrics(logit, label)["auroc"])


@pytest.mark.parametrize("hidden", [0, 6])
def test_heads_may_start_at_the_shares_of_labels_in_train(hidden):
    counts = {"binary": [149.5, 51.5], "classes": [100.5, 60.5, 40.5]}
    for kind, expected in counts.items():
        task = {"kind": kind, "hidden": hidden, "members": 2}
        task |= {"classes": ("a", "b", "c")} if kind == "classes" else {}
        sizes = [int(count) for count in expected]
        labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.float32)
        rows = SimpleNamespace(column=lambda _name, labels=labels: labels)
        for start in (False, True):
            model = plain_family(start_at_rate=start, **task).build(None, None).eval()
            before = [head[-1].bias.clone() for head in model.heads]
            model.fit(rows)
            biases = [head[-1].bias for head in model.heads]
            shares = torch.tensor(expected) / sum(expected)
            wanted = shares[1:].logit() if kind == "binary" else shares.log()
            for was, now in zip(before, biases, strict=True):
                torch.testing.assert_close(now.detach(), wanted if start else was)
