from dataclasses import replace

import pytest
import torch

from ehr_ray.family import Represent
from ehr_ray.registry import get_family
from ehr_ray.task import TaskConfig
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.begin import begin_task, standardise
from ehr_ray.train.task import LABEL, with_task


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
    unused = begin_task(family, model, batches(), LocalBackend(), fresh=True)
    assert unused == ["base.decoder.weight", "base.decoder.bias"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "base.used",
        "heads.0.1.weight",
        "heads.0.1.bias",
    }
    assert all(p.grad is None for p in model.parameters())


def test_a_resumed_run_keeps_the_scale_it_started_with(family):
    model = family.build(None, None)
    begin_task(family, model, batches(), LocalBackend(), fresh=False)
    assert torch.equal(model.center, torch.zeros(3))
    assert torch.equal(model.scale, torch.ones(3))
