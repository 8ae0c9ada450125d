"""Every tiny config on a device that is not the host's: nothing mixed, and hardly a wait.

Run by `test_second_device.py`, in a process of its own.
"""

import dataclasses
from functools import cached_property
from pathlib import Path

import pytest
import torch
from gpu_autocast import AsOnGPU
from second_device import MockTensor, Watched, mock_device
from torch import nn
from varlen import everywhere, varlen_attn

from ehr_ray.commands.benchmark.gpu import PACKED_TOLERANCE, PACKING, check_prediction
from ehr_ray.commands.benchmark.gpu_checks import (
    computed,
    few,
    gradients_apart,
    losses_apart,
    packed_apart,
)
from ehr_ray.commands.benchmark.gpu_report import Report
from ehr_ray.commands.benchmark.gpu_steps import step_speed
from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.errors import RunError
from ehr_ray.experiment import parse
from ehr_ray.families.set_vae.sequence.prior import GRUPrior
from ehr_ray.families.vitals_vae.config import VitalsVAEConfig
from ehr_ray.families.vitals_vae.conv import ConvDecoder, ConvEncoder
from ehr_ray.family import Term
from ehr_ray.nn import packed
from ehr_ray.registry import get_family
from ehr_ray.train import feed
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.feed import move
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import freeze, make_optimizer, set_lr
from ehr_ray.train.predictor import Predictor
from ehr_ray.train.step import OptimizerStep
from ehr_ray.train.task import LABEL, family_of, num_members, prepare_task_head

TINY = Path(__file__).parents[2] / "configs" / "tiny"
RAW = {p.stem: read_yaml(p) for p in sorted(TINY.glob("*.yaml"), reverse=True)}
ALIKE = {repr({**r, "name": "", "evaluation": {}}): n for n, r in RAW.items() if "family" in r}
CONFIGS = sorted(ALIKE.values())
"""Of tiny configs that differ in how they are evaluated the first, by name."""
MOST_SYNCS = 2
"""Of a micro-batch and a model: a step of several has as many for each, as has `train.seeds`."""
LOOKED_AT = {
    **{"predict": 4, "represent": 2, "latents": 2, "reconstruct": 2, "diagnose": 9},
    **{"targets": 4, "cells": 3, "hazards": 10, "drift": 16, "imputations": 5},
    **{"anomalies": 31, "values": 35, "thinned": 0, "grids": 0, "components": 0},
}
"""Waits of what is shown of a model, of a batch: for the sizes of what it picks out. Of the stays
with wrong sets beside, of eight kinds, some for each; of drift and hazards some for each horizon.
What is diagnosed comes to the host."""
SHORTER = {"vitals_lstm": {"model.last_hour": 6}}
"""What is long where a recurrent layer runs step by step."""
AHEAD = {
    "model.time_to_event_weight": 1.0,
    "model.time_to_event_codes": 5,
    "model.future_value_weight": 1.0,
    "model.future_value_codes": 5,
}
MORE = {
    "event_decoder": AHEAD,
    "visit_jepa": AHEAD,
    "visit_jepa by infonce": {"model.latent_loss": "infonce"},
    "seqset_poe by gru": {"model.prior": "gru"},
    "seqset_finetune by seeds": {"train.seeds": 3},
}
"""Objectives and layers that no tiny config has, by its name."""
CASES = sorted({*CONFIGS, *MORE})
SEED = 12345


class OnDevice:
    """A config's model on the mock, and batches of made-up patients of unlike lengths."""

    def __init__(self, name, cohort, patients, vocabulary):
        raw = read_yaml(TINY / f"{name.partition(' ')[0]}.yaml")
        raw = override(raw, SHORTER.get(name, {}) | MORE.get(name, {}))
        raw = override(raw, {"data.cohort": str(cohort)})
        self.experiment = parse(raw)
        self.family = family_of(self.experiment, 0.5)
        self.members = num_members(self.experiment)
        torch.manual_seed(0)
        self.model = self.family.build(self.experiment.model, vocabulary)
        self.device = mock_device()
        self._rows = [
            self.family.transform(p, self.experiment.model, vocabulary) for p in patients[:6]
        ]
        fit = self.family.training.fit_buffers
        if fit:
            fit(self.model, self.batch(6))
        if self.experiment.task is not None:
            batches = iter([self.batch(6)])
            prepare_task_head(self.family, self.model, batches, LocalBackend(), fresh=True)
        freeze(self.model, self.experiment.freeze)
        self.scheduled = {n: s.at(10**6, 10) for n, s in self.family.schema.schedules.items()}

    def batch(self, patients):
        batch = self.family.collate(self._rows[:patients], self.experiment.model)
        if self.experiment.task is not None:
            batch[LABEL] = (torch.arange(patients) % 2).float()
        return batch

    def watched(self):
        return Watched(in_parts=any(isinstance(m, nn.RNNBase) for m in self.model.modules()))

    def step(self, patients, micro_batches=1):
        """Take a step on the mock under watch."""
        backend = LocalBackend(self.device)
        model = backend.wrap(self.model).train()
        optimizer = make_optimizer(model, self.experiment.train)
        set_lr(optimizer, 1e-3)
        take = OptimizerStep(self.experiment, self.family, model, optimizer, backend, Sums(backend))
        micro = [move(self.batch(patients), self.device) for _ in range(micro_batches)]
        with self.watched() as seen:
            take(micro, self.scheduled, SEED)
        return seen

    def step_in_bf16(self):
        """Take a step on the CPU with the casts of a GPU."""
        train = dataclasses.replace(self.experiment.train, precision="bf16")
        experiment = dataclasses.replace(self.experiment, train=train)
        backend, optimizer = LocalBackend(), make_optimizer(self.model.train(), train)
        set_lr(optimizer, 1e-3)
        take = OptimizerStep(experiment, self.family, self.model, optimizer, backend, Sums(backend))
        with AsOnGPU():
            take([self.batch(6)], self.scheduled, SEED)

    @cached_property
    def padded(self):
        """What was seen of a step of six patients, which several tests compare with."""
        return self.step(6)

    def looks(self):
        """Return what is looked at besides training, by name: functions of (model, batch)."""
        shown, found = self.family.evaluation, {"predict": self.family.predict}
        found |= {"latents": shown.latents, "reconstruct": shown.reconstruct, **shown.outputs}
        if self.family.training.diagnose:
            found["diagnose"] = lambda m, b: self.family.training.diagnose.measure(m, [b])
        if self.family.represent:
            found["represent"] = lambda m, b: {"r": self.family.represent.function(m, b, None)}
        return {name: function for name, function in found.items() if function}


@pytest.fixture(scope="module", params=CASES)
def on_device(request, synthetic_cohort, synthetic_patients, synthetic_vocabulary):
    patients = synthetic_patients["train"]
    return OnDevice(request.param, synthetic_cohort, patients, synthetic_vocabulary)


def test_a_layer_norm_gives_float32_under_autocast_as_on_a_gpu():
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.functional.layer_norm(x, (4,)).dtype == torch.bfloat16
        with AsOnGPU():
            assert nn.functional.layer_norm(x, (4,)).dtype == torch.float32
            assert (x @ x.T).dtype == torch.bfloat16


@pytest.mark.parametrize("name", CASES)
def test_a_step_in_bf16_meets_no_type_it_can_not_take_on_a_gpu(
    name, synthetic_cohort, synthetic_patients, synthetic_vocabulary
):
    case = OnDevice(name, synthetic_cohort, synthetic_patients["train"], synthetic_vocabulary)
    case.step_in_bf16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), AsOnGPU():
        for name in {"predict", "represent", "latents"} & case.looks().keys():
            case.looks()[name](case.model.eval(), case.batch(6))
    assert all(torch.isfinite(parameter).all() for parameter in case.model.parameters())


def test_a_step_makes_nothing_on_the_host_and_waits_twice_at_most(on_device):
    few, many = on_device.step(2), on_device.padded
    for seen in (few, many):
        assert seen.mixes == []
        assert seen.host == []
        assert [c for c in seen.copies if c not in seen.syncs] == []
        assert len(seen.syncs) <= MOST_SYNCS * on_device.members, seen.syncs
    assert seen.operations > 100
    assert len(many.syncs) == len(few.syncs)


def test_a_step_of_two_micro_batches_waits_for_each(on_device):
    """Their counts are told without a wait, and no forward pass is made for them."""
    one, two = on_device.padded, on_device.step(6, 2)
    assert (two.mixes, two.host) == ([], [])
    assert len(two.syncs) <= 2 * len(one.syncs) <= 2 * MOST_SYNCS * on_device.members


def test_a_step_on_packed_tokens_waits_no_more_often(on_device, monkeypatch):
    """As on a GPU that has a kernel for them, which the mock's stands in for."""
    padded, packs = on_device.padded, []

    def kernel(*given, **options):
        packs.append(1)
        return varlen_attn(*given, **options)

    monkeypatch.setattr(packed, "kernel_for", lambda *_: kernel)
    seen = on_device.step(6)
    assert (seen.mixes, seen.host) == ([], [])
    assert [c for c in seen.copies if c not in seen.syncs] == []
    assert len(seen.syncs) == len(padded.syncs)
    family, prior = on_device.experiment.family, getattr(on_device.model, "prior", None)
    packing = {"event_transformer", "jepa", "seqset_poe"}
    assert bool(packs) == (family in packing and not isinstance(prior, GRUPrior))


def test_counts_are_told_on_the_device_without_a_wait(on_device):
    family, model = on_device.family, on_device.model.train().to(on_device.device)
    if family.training.counts is None:
        return
    batch = move(on_device.batch(6), on_device.device)
    with torch.no_grad(), on_device.watched() as seen:
        found = family.training.counts(model, batch, SEED)
        terms = family.loss(model, batch, on_device.scheduled, SEED)
    assert all(isinstance(count, MockTensor) for count in found.values())
    assert (seen.mixes, seen.host) == ([], [])
    assert [w for w in seen.syncs if "counts" in w] == []
    weighed = {name: float(term.count) for name, term in terms.items() if term.coef}
    assert {name: float(found[name]) for name in weighed} == weighed


def test_the_loss_of_the_device_is_that_of_the_host(on_device):
    family, model, batch = on_device.family, on_device.model.eval(), on_device.batch(6)
    terms = []
    for device in ("cpu", on_device.device):
        model = model.to(device)
        there = move(batch, torch.device(device))
        with torch.no_grad(), on_device.watched():
            found = family.loss(model, there, on_device.scheduled, SEED)
        terms.append({name: float(term.sum) for name, term in found.items()})
    assert terms[0] == pytest.approx(terms[1], rel=1e-6)


def test_what_is_shown_of_a_model_stays_on_its_device(on_device):
    model = on_device.model.to(on_device.device).eval()
    batch = move(on_device.batch(4), on_device.device)
    if on_device.experiment.task is not None:
        del batch[LABEL]
    for name, look in on_device.looks().items():
        with torch.no_grad(), on_device.watched() as seen:
            found = look(model, batch)
        assert seen.mixes == [], name
        assert name in LOOKED_AT, f"{name}: say in LOOKED_AT how often the host may wait for it"
        # Each of `train.seeds` is asked for its answer; what is shown besides is of the first.
        limit = LOOKED_AT[name] * (on_device.members if name == "predict" else 1)
        assert len(seen.syncs) <= limit, (name, seen.syncs)
        assert [c for c in seen.copies if c not in seen.syncs] == [], name
        assert seen.host == [] or name == "diagnose", (name, seen.host)
        for key, value in found.items():
            assert isinstance(value, float | MockTensor), (name, key)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_off_the_cpu_a_model_predicts_in_the_precision_it_was_trained_in(precision):
    device, told = mock_device(), []

    def output(model, batch):
        told.append((batch["x"].device, torch.is_autocast_enabled(device.type)))
        return {"half": batch["x"].bfloat16(), "count": batch["x"].long()}

    predictor = Predictor(None, None, None, nn.Linear(1, 1).to(device), precision)
    with Watched():
        found = predictor.outputs({"x": torch.ones(2, 1)}, output)
    assert told == [(device, precision == "bf16")]
    assert {n: (v.device.type, v.dtype) for n, v in found.items()} == {
        "half": ("cpu", torch.float32),
        "count": ("cpu", torch.int64),
    }


@pytest.mark.parametrize(("precision", "tf32"), [("highest", False), ("high", True)])
def test_off_the_cpu_a_model_predicts_by_products_as_in_its_training(precision, tf32):
    """Else a GPU would convolve in TF32, whatever products are to have."""
    told, before = [], torch.backends.cudnn.allow_tf32

    def output(_model, _batch):
        told.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
        planned.append(torch.backends.cuda.cudnn_sdp_enabled())
        return {}

    model, planned = nn.Linear(1, 1).to(mock_device()), []
    with Watched():
        predictor = Predictor(None, None, None, model, matmul_precision=precision)
        predictor.outputs({"x": torch.ones(2, 1)}, output)
    assert (told, planned) == ([(precision, tf32)], [False])
    assert torch.backends.cudnn.allow_tf32 == before
    assert torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(
    "name", ["vitals_vae", "set_vae", "seqset_poe", "jepa", "event_transformer"]
)
def test_what_the_script_for_a_gpu_checks_is_computed_on_its_device(
    name, tiny_experiment, make_loader, synthetic_vocabulary, monkeypatch
):
    """Else the first GPU would find a tensor of the host in the script itself."""
    changes = {"model.dropout": 0.0} if name in ("jepa", "event_transformer") else {}
    experiment, device, report = tiny_experiment(name, changes), str(mock_device()), Report()
    family, loader = family_of(experiment), make_loader(experiment)
    torch.manual_seed(0)
    model, batch = family.build(experiment.model, synthetic_vocabulary), few(loader)
    wanted = computed(experiment, family, model, batch, "cpu")
    with Watched() as seen:
        model = model.to(device)
        found = computed(experiment, family, model, batch, device)
    assert (seen.mixes, seen.host) == ([], [])
    assert seen.operations > 100
    if name == "vitals_vae":
        assert {"convolution", "convolution_backward"} <= seen.names
    assert losses_apart(found, wanted) < 1e-5
    assert gradients_apart(found, wanted)[0] < 1e-4
    with Watched() as seen:
        if name in PACKING:
            with monkeypatch.context() as patched:
                patched.setattr(packed, "kernel_for", everywhere)
                apart, _ = packed_apart(experiment, family, model, batch, device)
            assert apart < PACKED_TOLERANCE
        speed = step_speed(experiment, family, model, loader, device, 1, 1e12)
        check_prediction(
            report, name, experiment, family, model, synthetic_vocabulary, loader, device
        )
    assert seen.mixes == []
    assert speed["patients per second"] > 0
    assert report.figures[f"{name}, patients predicted per second"] > 0
    assert report.faults == []


def test_the_mock_sees_mixes_waits_copies_and_work_of_the_host():
    device = mock_device()
    ours, theirs = torch.ones(3).to(device), torch.ones(3)
    with Watched() as seen:
        torch.add(ours, theirs)
    assert seen.mixes == ["add"]
    scalar = torch.tensor(2.0)
    with Watched() as seen:
        ours * scalar
        ours.masked_fill(ours > 0, scalar)
        torch.stack([ours.sum(), scalar])
        torch.cat([ours, theirs])
    assert seen.mixes == ["stack", "cat"]
    with Watched() as seen:
        float(ours.sum())
        ours[ours > 0]
        ours.nonzero()
        ours.cpu()
    assert seen.syncs == ["_local_scalar_dense", "index", "nonzero", "_to_copy"]
    with Watched() as seen:
        torch.tensor(1.0, device=device)
        theirs.to(device)
        ours.cpu()
    assert seen.copies == ["tensor of host values", "_to_copy", "_to_copy"]
    with Watched() as seen:
        torch.zeros(2)
        torch.zeros(2, device=device)
        ours + 1
    assert seen.host == ["zeros"]
    assert ours.device == device


def test_a_step_is_on_the_device_before_it_is_asked_for():
    """Two are on it when the first is taken, without a wait, and each is as it was on the host."""
    hosts = [[{"x": torch.full((2,), n), "y": torch.ones(n + 1, 2)}] for n in range(3)]
    read = []

    def steps():
        for micro in hosts:
            read.append(micro)
            yield micro

    with Watched() as seen:
        fed = feed.on_device(steps(), mock_device())
        micro = next(fed)
    assert (len(read), len(seen.copies), seen.syncs) == (2, 4, [])
    for (there,), (here,) in zip([micro, *fed], hosts, strict=True):
        assert {type(value) for value in there.values()} == {MockTensor}
        assert all(torch.equal(there[name].cpu(), here[name]) for name in here)


def line_loss(model, batch, scheduled, seed):
    """The squared error of a line through 1, of rows weighted alike."""
    error = (model(batch["x"]) - 1).square().sum() * scheduled["weight"]
    return {"fit": Term(error, torch.full_like(error, len(batch["x"])))}


def test_a_gradient_that_is_not_finite_waits_for_a_look(tiny_experiment):
    device = mock_device()
    model = nn.Linear(1, 1, bias=False).to(device)
    family = dataclasses.replace(get_family("set_vae"), loss=line_loss)
    optimizer, backend = torch.optim.SGD(model.parameters(), lr=0.1), LocalBackend(device)
    step = OptimizerStep(tiny_experiment(), family, model, optimizer, backend, Sums(backend))
    with Watched():
        for weight in (1.0, float("inf"), 2.0):
            step([{"x": torch.ones(2, 1)}], {"weight": weight}, 7)
        with pytest.raises(RunError, match="fit is not finite with weight inf"):
            step.check()


def test_a_step_in_which_every_part_is_held_stays_on_the_device(tiny_experiment):
    """As by `train.layers: {".*": {from_epoch: 1}}` in the first epoch."""
    device = mock_device()
    model = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)]).to(device)
    one, other = model
    family = get_family("set_vae")
    family = dataclasses.replace(
        family,
        loss=lambda _, *given: line_loss(lambda x: one(x) + other(x), *given),
        training=dataclasses.replace(family.training, clipped=lambda parts: parts),
    )
    layers = {"train.layers": {".*": {"from_epoch": 1}}}
    experiment, backend = tiny_experiment(changes=layers), LocalBackend(device)
    optimizer = make_optimizer(model, experiment.train)
    set_lr(optimizer, 1e-3, epoch=0)
    step = OptimizerStep(experiment, family, model, optimizer, backend, Sums(backend))
    with Watched() as seen:
        norm = step([{"x": torch.ones(2, 1)}], {"weight": 1.0}, 7)
        assert float(norm) == 0
    assert (norm.device, seen.mixes) == (device, [])


@pytest.mark.parametrize("deterministic", [False, True])
def test_where_it_is_asked_to_repeat_a_gpu_is_given_no_kernel_that_does_not(deterministic):
    config = VitalsVAEConfig(arch="conv", first_hour=0, last_hour=5)
    device, inputs = mock_device(), 3 * config.num_vitals
    encoder, decoder = ConvEncoder(config).to(device), ConvDecoder(config, 8).to(device)
    torch.use_deterministic_algorithms(deterministic)
    try:
        with Watched() as seen:
            told = encoder(torch.ones(2, inputs, config.num_hours, device=device))
            merged, _ = decoder(torch.ones(2, 8, device=device))
            (told.sum() + merged.sum()).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    refused = {"upsample_linear1d_backward", "_adaptive_avg_pool2d_backward"}
    assert seen.names & refused == (set() if deterministic else refused)
