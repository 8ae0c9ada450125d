"""Several models of a task in one run are what as many runs of one would be, and their mean."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from killed import Killed, kill_at
from safetensors.torch import load_file
from torch import nn

import ehr_ray
from ehr_ray.config.task import OUTPUTS, TaskConfig
from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.experiment import parse
from ehr_ray.family import Represent
from ehr_ray.registry import get_family
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train import history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.loop import train
from ehr_ray.train.members import members_of, of_member, with_members
from ehr_ray.train.report import Watch
from ehr_ray.train.task import LABEL, family_of, task_models, with_task

CONFIGS = Path(__file__).parents[3] / "configs" / "tiny"
ONE_STEP = {"train.max_steps": 1, "train.warmup_steps": 0}


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))


def represent(model, batch, seed):
    noise = 0 if seed is None else torch.randn(3, generator=torch.Generator().manual_seed(seed))
    return (batch["x"] + noise) @ model.weight


PLAIN = replace(
    get_family("set_vae"),
    build=lambda *_: Plain(),
    represent=Represent(represent, lambda _model: 3),
    predict=lambda model, batch: {"embedding": batch["x"] @ model.weight, "other": batch["x"]},
)
KINDS = {
    "binary": {"members": 2},
    "regression": {"kind": "regression", "loss": "squared"},
    "classes": {"kind": "classes", "classes": ("a", "b", "c"), "members": 2},
}


def families(kind, number=3):
    """The family of one model of a task, and that of several."""
    alone = with_task(PLAIN, TaskConfig(name="outcome", dropout=0.0, **KINDS[kind]))
    return alone, with_members(alone, number, OUTPUTS[kind])


def batch_of(n=8):
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
    return {"x": x, LABEL: (torch.arange(n) % 2).float()}


def built(family, seed=0):
    torch.manual_seed(seed)
    model = family.build(None, None)
    for one in task_models(model):
        if one.scaled:
            one.fit_scale(np.array([10.0, 14.0]))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_mean_of_the_members_answers(kind):
    alone, family = families(kind)
    model, batch = built(family).eval(), batch_of()
    found = family.predict(model, batch)
    parts = [alone.predict(member, batch) for member in model.members]
    answers = torch.stack([part[OUTPUTS[kind]] for part in parts])
    assert not torch.allclose(answers[0], answers[1])
    torch.testing.assert_close(found[OUTPUTS[kind]], answers.mean(0))
    assert torch.equal(found["embedding"], torch.cat([part["embedding"] for part in parts], 1))
    assert torch.equal(found["other"], parts[0]["other"])
    _, said = family.training.task_scores(model, batch)
    torch.testing.assert_close(said, answers.mean(0))


@pytest.mark.parametrize("kind", KINDS)
def test_each_member_has_the_loss_and_the_gradient_it_has_alone_with_noise_of_its_own(kind):
    alone, family = families(kind)
    model, batch, seed = built(family), batch_of(), 6
    term = family.loss(model, batch, {}, seed)["task"]
    (term.sum / term.count).backward()
    told = family.training.counts(model, batch, seed)["task"]
    assert float(told) == float(term.count)
    losses, found = [], [[p.grad for p in member.parameters()] for member in model.members]
    for place, gradients in enumerate(found):
        model.zero_grad()
        own = alone.loss(model.members[place], batch, {}, seed + 2 * place)["task"]
        (own.sum / own.count).backward()
        losses.append(float((own.sum / own.count).detach()))
        expected = [p.grad for p in model.members[place].parameters()]
        torch.testing.assert_close(gradients, expected)
    assert len(set(losses)) == 3
    assert float((term.sum / term.count).detach()) == pytest.approx(np.mean(losses))


def test_the_first_member_starts_as_a_model_alone_does():
    alone, family = families("binary")
    first, *others = (member.state_dict() for member in built(family).members)
    expected = built(alone).state_dict()
    assert all(torch.equal(first[name], tensor) for name, tensor in expected.items())
    assert not any(torch.equal(other["base.weight"], first["base.weight"]) for other in others)


def test_validation_repeats_and_leaves_inputs_alone():
    _, family = families("binary")
    model, batch = built(family).eval(), batch_of()
    first, second = (family.loss(model, batch, {}, seed)["task"] for seed in (1, 2))
    assert torch.equal(first.sum, second.sum)


def test_tensors_of_a_checkpoint_are_those_of_a_member_counted_round():
    tensors = {f"members.{i}.a.b": torch.tensor(i) for i in range(2)}
    assert [int(of_member(tensors, i, 2)["a.b"]) for i in range(4)] == [0, 1, 0, 1]
    alone = {"members.a": torch.tensor(7)}
    assert of_member(alone, 3, 1) == alone


@pytest.fixture(scope="module")
def start(synthetic_cohort, tmp_path_factory):
    """Train into a folder of its own: start(name, {path: value}, watch, config) gives it."""
    home = tmp_path_factory.mktemp("members")

    def run(name, changes, watch=None, config="mortality"):
        given = {"data.cohort": str(synthetic_cohort), "output": str(home), "name": name}
        given["train.seeds"] = 1
        raw = read_yaml(CONFIGS / f"{config}.yaml")
        experiment = parse(override(raw, {**given, **changes}))
        family = family_of(experiment)
        with prepared(experiment, family, on_ray=False) as data:
            parts = (data.vocabulary, loader_of(experiment, family, data), LocalBackend())
            train(experiment, family, *parts, home / name, watch or Watch())
        return home / name

    return run


@pytest.fixture(scope="module")
def pretrained(start):
    return start("pretrained", {**ONE_STEP, "task": None, "train.layers": {}})


RUN = {"train.clip": 0.05, "train.report_steps": 2, "train.max_steps": 6}


@pytest.fixture(scope="module")
def three(start, pretrained):
    """Of three members that a pretrained encoder starts, with a clip that is met."""
    return start("three", {**RUN, "init_from": str(pretrained), "train.seeds": 3})


def newest_state(run):
    return max((run / "state").iterdir())


def weights_of(run, member=0, number=1):
    return of_member(load_file(newest_state(run) / "model.safetensors"), member, number)


def test_the_first_of_three_is_the_run_of_one_and_the_others_are_not(start, pretrained, three):
    one = start("one", {**RUN, "init_from": str(pretrained)})
    alone = weights_of(one)
    assert not any(name.startswith("members.") for name in alone)
    assert float(history.read(one)["grad_norm"].min()) > 0.05
    first, second, third = (weights_of(three, member, 3) for member in range(3))
    assert first.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-4, atol=1e-5)
    trained = [name for name in alone if name.startswith("base.encoder.") and "weight" in name]
    assert trained
    for ours, theirs in ((first, second), (second, third), (first, third)):
        assert not all(torch.allclose(ours[n], theirs[n], atol=1e-4) for n in trained)


def assert_started(run, number, encoder):
    lines = set((run / "init_from.txt").read_text().splitlines())
    names = load_file(encoder / "checkpoint" / "model.safetensors")
    assert {f"members.{i}.base.{name}: copied" for i in range(number) for name in names} <= lines


def test_a_pretrained_encoder_starts_every_member(three, pretrained):
    assert_started(three, 3, pretrained)


def test_an_encoder_of_sets_starts_every_member_and_is_the_first_s_to_show(start):
    encoder = start("sets", ONE_STEP, config="set_vae")
    changes = {"init_from": str(encoder), "task": {"name": "outcome"}, "train.seeds": 2}
    run = start("sets_members", {**ONE_STEP, **changes, "train.lr": 1e-12}, config="set_vae")
    assert_started(run, 2, encoder)
    before = load_file(encoder / "checkpoint" / "model.safetensors")
    for member in range(2):
        after = weights_of(run, member, 2)
        for name, tensor in before.items():
            torch.testing.assert_close(after[f"base.{name}"], tensor)
    assert ehr_ray.load(run).family.evaluation.latents is not None


def test_a_run_with_members_starts_each_of_them_and_a_run_with_one(start, three):
    source = load_file(three / "checkpoint" / "model.safetensors")
    held = {**ONE_STEP, "train.lr": 1e-12, "init_from": str(three)}
    again = start("again", {**held, "train.seeds": 4})
    alone = start("again_one", held)
    heads = "heads.out"
    for member, origin in ((0, 0), (1, 1), (2, 2), (3, 0)):
        ours = weights_of(again, member, 4)[heads]
        torch.testing.assert_close(ours, source[f"members.{origin}.{heads}"])
    torch.testing.assert_close(weights_of(alone)[heads], source[f"members.0.{heads}"])
    assert "members.3.heads.out: copied" in (again / "init_from.txt").read_text().splitlines()


def test_a_killed_run_ends_as_one_that_nobody_disturbed(start, pretrained, three):
    changes = {**RUN, "init_from": str(pretrained), "train.seeds": 3}
    with pytest.raises(Killed):
        start("cut", changes, kill_at(3))
    cut = start("cut", changes)
    for file in ("model", "optimizer"):
        ours, theirs = (load_file(newest_state(r) / f"{file}.safetensors") for r in (cut, three))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    rows = [history.read(run).drop(columns=["seconds", "data_wait"]) for run in (cut, three)]
    assert rows[0].equals(rows[1])


def test_a_loaded_run_answers_with_the_mean_of_its_members(three, synthetic_cohort):
    model = ehr_ray.load(three)
    shards = sorted((synthetic_cohort / "data" / "held_out").rglob("*.parquet"))
    events = pd.concat([pd.read_parquet(path) for path in shards])
    alone = with_task(get_family("jepa"), model.experiment.task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is calibrated
        found = model.predict(events)["probability"].to_numpy()
        parts = [
            replace(model, model=member, family=replace(model.family, predict=alone.predict))
            for member in members_of(model.model)
        ]
        answers = [part.predict(events)["probability"].to_numpy() for part in parts]
    logits = np.log(answers) - np.log1p(-np.array(answers))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits.mean(0))), rtol=1e-5)
    width = len(parts[0].embed(events)["embedding"].iloc[0])
    assert {len(row) for row in model.embed(events)["embedding"]} == {3 * width}
