import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ehr_ray.config.task import StatisticsConfig, TaskConfig
from ehr_ray.errors import ConfigError
from ehr_ray.events.block_files import write_block
from ehr_ray.events.blocks import BlockStore
from ehr_ray.experiment import parse
from ehr_ray.registry import FAMILIES, get_schema
from ehr_ray.train.statistics import LABEL, STATISTICS, StatisticsHeads
from ehr_ray.train.task import family_of

TASK = TaskConfig(
    name="outcome",
    hidden=6,
    members=3,
    dropout=0.0,
    hidden_dropout=0.0,
    statistics=StatisticsConfig(dropout=0.5),
)
TAKERS = [name for name in FAMILIES if get_schema(name).takes_task]


def heads(task=TASK, width=5, statistics=7):
    """Statistics are of three variables, the last of none; a variable's second is a count."""
    variables = np.array([0, 0, 1, 1, 2, 2, -1])[:statistics]
    unmeasured = np.array([np.nan, 0] * 3 + [np.nan], np.float32)[:statistics]
    reader = SimpleNamespace(width=statistics, variables=variables, unmeasured=unmeasured)
    torch.manual_seed(0)
    return StatisticsHeads(width, reader, task)


def inputs(rows=200):
    drawn = np.random.default_rng(0).normal(size=(rows, 12)).astype(np.float32)
    return torch.from_numpy(drawn[:, :5]), torch.from_numpy(drawn[:, 5:])


@pytest.fixture
def rows(tmp_path):
    """A quarter of 200 rows is positive, and their statistics."""
    _, statistics = inputs()
    label = (np.arange(200) % 4 == 0).astype(np.float32)
    write_block(
        tmp_path / "0.arrow",
        [
            {STATISTICS: s, LABEL: np.array(y)}
            for s, y in zip(statistics.numpy(), label, strict=True)
        ],
    )
    return BlockStore([tmp_path / "0.arrow"])


def test_heads_start_at_the_rate_of_the_label_in_train(rows):
    model = heads().eval()
    model.fit(rows)
    assert torch.sigmoid(model.bias).flatten().tolist() == pytest.approx([50.5 / 201] * 3, abs=1e-6)


def test_heads_of_a_regression_keep_the_shift_they_were_given(rows):
    model = heads(TaskConfig(name="y", kind="regression", hidden=6, statistics=StatisticsConfig()))
    with torch.no_grad():
        model.bias.fill_(0.3)
    model.fit(rows)
    assert model.bias.unique().tolist() == pytest.approx([0.3])


def test_heads_share_nothing_and_start_apart(rows):
    model = heads().eval()
    model.fit(rows)
    logits = model(*inputs())
    assert logits.shape == (200, 3)
    assert (logits[:, 0] - logits[:, 1]).abs().mean() > 0.01
    logits[:, 0].sum().backward()
    for parameter in model.parameters():
        assert parameter.grad[0].abs().max() > 0
        assert parameter.grad[1:].eq(0).all()


def test_each_head_is_left_without_other_statistics_in_training_alone(rows):
    model = heads()
    model.fit(rows)
    told = model.inputs(inputs()[1]).flatten(1)
    kept = model._kept(told, 0.5)
    gone = (kept == 0) & (told != 0)
    varying = (told != 0).any(0)
    assert 0.4 < gone[:, :, varying].float().mean() < 0.6
    assert (gone[0] != gone[1]).any()
    torch.testing.assert_close(kept[~gone], 2 * told.expand(3, -1, -1)[~gone])
    torch.testing.assert_close(model.eval()._kept(told, 0.5), told.expand(3, -1, -1))


def test_heads_read_both_the_embedding_and_the_statistics(rows):
    model = heads().eval()
    model.fit(rows)
    embedding, statistics = inputs()
    logits = model(embedding, statistics)
    assert not torch.allclose(model(embedding + 1, statistics), logits)
    assert not torch.allclose(model(embedding, statistics + 1), logits)


def test_a_missing_statistic_gives_a_finite_logit(rows):
    model = heads().eval()
    model.fit(rows)
    embedding, statistics = inputs()
    assert torch.isfinite(model(embedding, torch.full_like(statistics, torch.nan))).all()


@pytest.mark.parametrize("name", TAKERS)
def test_every_family_that_takes_a_task_takes_statistics_and_never_sees_them(
    name, tiny_experiment, synthetic_vocabulary, synthetic_patients
):
    experiment = dataclasses.replace(tiny_experiment(name), task=TASK)
    family = family_of(experiment)
    torch.manual_seed(0)
    model = family.build(experiment.model, synthetic_vocabulary).eval()
    patients = synthetic_patients["train"][:3]
    rows = [family.transform(p, experiment.model, synthetic_vocabulary) for p in patients]
    batch = family.collate(rows, experiment.model)
    assert batch[STATISTICS].shape == (3, len(model.heads.inputs.shift))
    seen = []
    model.base.register_forward_pre_hook(lambda _m, args: seen.append(args))
    outputs = family.predict(model, batch)
    assert outputs["logit"].shape == (3,)
    assert not any(STATISTICS in arg for args in seen for arg in args if isinstance(arg, dict))
    if family.evaluation.latents is not None:
        family.evaluation.latents(model, batch)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden layer"),
        ({"statistics": {"windows": [6, 3]}}, "must ascend"),
        ({"statistics": {"windows": []}}, "windows"),
    ],
)
def test_statistics_that_cannot_be_are_refused(changes, message):
    task = {"name": "outcome", "hidden": 8, "statistics": {}, **changes}
    raw = {"family": "set_vae", "name": "x", "data": {"cohort": "c"}, "task": task}
    with pytest.raises(ConfigError, match=message):
        parse(raw)


def test_all_statistics_of_a_variable_are_left_out_at_once_in_training():
    config = StatisticsConfig(dropout=0.0, variable_dropout=0.4)
    model = heads(dataclasses.replace(TASK, statistics=config))
    given = torch.ones(2000, 7)
    seen = []
    model.inputs.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(torch.zeros(2000, 5), given)
    (left,) = seen
    gone = left.isnan()
    assert not gone[:, 6].any()  # of no variable
    for first in (0, 2, 4):
        assert float(gone[:, first].float().mean()) == pytest.approx(0.4, abs=0.05)
        assert torch.equal(left[:, first + 1] == 0, gone[:, first])  # nothing was counted
    assert not torch.equal(gone[:, 0], gone[:, 2])
    model.eval()(torch.zeros(2000, 5), given)
    assert torch.equal(seen[1], given)
