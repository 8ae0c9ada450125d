from dataclasses import replace

import numpy as np
import pytest
import torch

from ehr_ray.config.task import TaskConfig
from ehr_ray.family import Represent
from ehr_ray.registry import get_family
from ehr_ray.train.targets import row_weights, selection, target_loss, target_metrics
from ehr_ray.train.task import LABEL, with_task

CLASSES = TaskConfig(name="c", kind="classes", classes=("a", "b", "c"), class_weight="balanced")
NUMBERS = TaskConfig(name="n", kind="regression")


def mean(terms):
    return float(terms["task"].sum / terms["task"].count)


def test_each_kind_is_chosen_by_its_own_metric():
    assert (selection(NUMBERS).metric, selection(NUMBERS).mode) == ("val/mae", "min")
    assert (selection(CLASSES).metric, selection(CLASSES).mode) == ("val/macro_auroc", "max")
    r2 = selection(TaskConfig(name="n", kind="regression", select="r2"))
    assert (r2.metric, r2.mode) == ("val/r2", "max")
    assert "more than one value" in r2.remedy


def test_a_regression_is_learned_by_huber_or_squared_error():
    raw, label = torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 0.0])
    assert mean(target_loss(raw, label, NUMBERS, (1.0,))) == pytest.approx((0.125 + 2.5) / 2)
    squared = TaskConfig(name="n", kind="regression", loss="squared")
    assert mean(target_loss(raw, label, squared, (1.0,))) == pytest.approx((0.25 + 9) / 2)


def test_balanced_classes_have_the_same_say():
    weights = row_weights(CLASSES, (0.5, 0.25, 0.25))
    raw = torch.randn(8, 2, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0.0, 0, 0, 0, 1, 1, 2, 2])
    nll = -torch.log_softmax(raw, 2).gather(2, label.long().view(8, 1, 1).expand(8, 2, 1))
    expected = np.mean([float(nll[label == k].mean()) for k in range(3)])
    assert mean(target_loss(raw, label, CLASSES, weights)) == pytest.approx(expected, rel=1e-5)
    assert row_weights(CLASSES, (0.5, 0.5, 0.0))[2] == 1.0


def test_metrics_of_tuning_are_those_of_an_evaluation():
    found = target_metrics(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]), NUMBERS)
    assert found["mae"] == 0.5
    assert np.isnan(found["r2"])
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [3, 0, 0]])
    assert target_metrics(logits, torch.tensor([0.0, 1, 2]), CLASSES)["accuracy"] == pytest.approx(
        2 / 3
    )


def test_the_scale_of_the_labels_is_in_the_checkpoint_and_answers_are_in_their_unit():
    plain = replace(
        get_family("set_vae"),
        build=lambda *_: torch.nn.Linear(3, 3),
        represent=Represent(lambda model, batch, _seed: model(batch["x"]), lambda _model: 3),
        predict=lambda _model, batch: {"embedding": batch["x"]},
    )
    family = with_task(plain, NUMBERS)
    model = family.build(None, None).eval()
    model.fit_scale(np.array([100.0, 120.0], np.float32))
    batch = {"x": torch.zeros(4, 3), LABEL: torch.full((4,), 110.0)}
    said = family.predict(model, batch)["target_value"]
    torch.testing.assert_close(said, model(batch, None).mean(1) * 10 + 110)
    again = family.build(None, None)
    again.load_state_dict(model.state_dict())
    assert (float(again.target_location), float(again.target_spread)) == (110, 10)
    model.fit_scale(np.full(3, 7.0, np.float32))
    assert float(model.target_spread) == 1  # labels that do not vary have no scale
