import math
from dataclasses import replace

import pytest
import torch
from varlen import everywhere, varlen_attn

from ehr_ray.commands.benchmark import gpu
from ehr_ray.commands.benchmark.gpu_checks import (
    Computed,
    computed,
    gradients_apart,
    late,
    losses_apart,
    packed_apart,
)
from ehr_ray.commands.benchmark.gpu_checks import few as compared
from ehr_ray.commands.benchmark.gpu_models import MODELS, experiment, experiments, started
from ehr_ray.nn import packed
from ehr_ray.runtime.data.prepared import prepared
from ehr_ray.runtime.training.worker import loader_of
from ehr_ray.train.task import family_of


def of(losses=None, **gradients):
    parts = {f"{name}.weight": torch.tensor(value) for name, value in gradients.items()}
    return Computed(losses or {}, parts)


@pytest.mark.parametrize("losses", [(1.0, math.nan), (math.nan, 1.0), (1.0, math.inf)])
def test_a_term_that_is_not_finite_is_never_near(losses):
    wanted = of({"recon": 1.0, "kl": 1.0})
    assert losses_apart(of({"recon": 1.0, "kl": 1.1}), wanted) == pytest.approx(0.1)
    assert not losses_apart(of(dict(zip(("recon", "kl"), losses, strict=True))), wanted) <= 1e3
    assert not losses_apart(wanted, of(dict(zip(("recon", "kl"), losses, strict=True)))) <= 1e3


def test_gradients_are_compared_by_part_and_what_is_small_against_the_whole():
    wanted = of(encoder=[3.0, 4.0], decoder=[10.0], token=[1e-9])
    assert gradients_apart(wanted, wanted)[0] == 0
    found = of(encoder=[3.5, 4.0], decoder=[10.0], token=[5e-9])
    assert gradients_apart(found, wanted) == (pytest.approx(0.1), "encoder")
    missing = of(encoder=[3.0, 4.0], token=[1e-9])
    assert gradients_apart(missing, wanted) == (pytest.approx(1.0), "decoder")
    assert gradients_apart(wanted, missing)[0] > 1
    for bad in (math.nan, math.inf):
        broken = of(encoder=[3.0, bad], decoder=[10.0], token=[1e-9])
        found, part = gradients_apart(broken, wanted)
        assert not found <= 1e3
        assert part == "encoder"


def test_every_weight_of_a_loss_holds_where_a_device_is_compared(tmp_path):
    for _, _, plan in experiments(tmp_path, tmp_path, ("tiny",)):
        scheduled = late(plan)
        if "beta" in scheduled:
            assert scheduled["beta"] == plan.schedules["beta"].end > 0
        assert scheduled.get("mean_share", 0.0) == 0  # so that its noise counts too


def few(experiment, make_loader, vocabulary):
    """Return the family, a model and six patients."""
    family, loader = family_of(experiment), make_loader(experiment)
    torch.manual_seed(0)
    model = family.build(experiment.model, vocabulary)
    return family, model, loader.collate(loader.train.rows(range(6)))


def test_the_divergence_and_its_gradient_are_compared(
    tiny_experiment, make_loader, synthetic_vocabulary
):
    experiment = tiny_experiment("set_vae")
    family, model, batch = few(experiment, make_loader, synthetic_vocabulary)
    wanted = computed(experiment, family, model, batch, "cpu")
    assert wanted.losses["kl"] > 0
    assert {name.partition(".")[0] for name in wanted.gradients} >= {"posterior", "read"}
    assert all(parameter.grad is None for parameter in model.parameters())
    half = replace(experiment, train=replace(experiment.train, precision="bf16"))
    found = computed(half, family, model, batch, "cpu")
    assert 0 < losses_apart(found, wanted) < gpu.LOSS_TOLERANCE["bf16"]
    assert 0 < gradients_apart(found, wanted)[0] < gpu.gradient_tolerance("set_vae", "bf16")


@pytest.mark.parametrize("name", ["jepa", "vitals_vae", "event_transformer", "hcat"])
def test_a_part_that_is_more_than_half_wrong_is_no_rounding(
    name, tiny_experiment, make_loader, synthetic_vocabulary
):
    experiment = tiny_experiment(name, {"model.dropout": 0.0} if name != "vitals_vae" else {})
    family, model, batch = few(experiment, make_loader, synthetic_vocabulary)
    wanted = computed(experiment, family, model, batch, "cpu")
    half = replace(experiment, train=replace(experiment.train, precision="bf16"))
    found = computed(half, family, model, batch, "cpu")
    limit = gpu.gradient_tolerance(name, "bf16")
    assert 0 < gradients_apart(found, wanted)[0] < limit
    largest = max(wanted.gradients, key=lambda n: float(wanted.gradients[n].norm()))
    part = largest.rpartition(".")[0]
    for parameter in found.gradients:
        if parameter.rpartition(".")[0] == part:
            found.gradients[parameter].mul_(0.4)
    assert gradients_apart(found, wanted)[0] > limit


@pytest.mark.parametrize("name", [*MODELS])
def test_no_module_loses_its_gradient_unseen(name, synthetic_cohort, tmp_path):
    """In both precisions, of the models that the script compares."""
    plan = experiment(name, "tiny", synthetic_cohort, tmp_path, 16)
    family = family_of(plan)
    with prepared(plan, family, on_ray=False) as data:
        loader = loader_of(plan, family, data)
        model = started(plan, family, data.vocabulary, loader)
        wanted = computed(plan, family, model, compared(loader), "cpu")
    parts = {name.rpartition(".")[0] for name, g in wanted.gradients.items() if g.any()}
    limit = max(gpu.gradient_tolerance(name, precision) for precision in gpu.PRECISIONS)
    assert len(parts) > 10
    for part in parts:
        left = {n: g for n, g in wanted.gradients.items() if n.rpartition(".")[0] != part}
        apart, worst = gradients_apart(Computed(wanted.losses, left), wanted)
        assert apart > limit, part
        assert worst == part


def test_a_model_that_is_compared_starts_with_what_its_family_fits(synthetic_cohort, tmp_path):
    plan = experiment("hcat", "tiny", synthetic_cohort, tmp_path, 16)
    family = family_of(plan)
    with prepared(plan, family, on_ray=False) as data:
        loader = loader_of(plan, family, data)
        model = started(plan, family, data.vocabulary, loader)
        plain = family.build(plan.model, data.vocabulary)
    assert not plain.token_mean.any()
    assert model.token_mean.any()


def forgetful(query, key, value, *given, **options):
    """Attention whose values have no gradient."""
    return varlen_attn(query, key, value.detach(), *given, **options)


@pytest.mark.parametrize("name", gpu.PACKING)
def test_a_gradient_of_packed_tokens_is_held_against_that_of_padded_ones(
    name, tiny_experiment, make_loader, synthetic_vocabulary, monkeypatch
):
    changes = {} if name == "seqset_poe" else {"model.dropout": 0.0}  # which it has not
    experiment = tiny_experiment(name, {**changes, "train.precision": "bf16"})
    given = few(experiment, make_loader, synthetic_vocabulary)
    assert packed_apart(experiment, *given, "cpu") is None
    monkeypatch.setattr(packed, "kernel_for", everywhere)
    right, _ = packed_apart(experiment, *given, "cpu")
    assert 0 < right < gpu.PACKED_TOLERANCE
    monkeypatch.setattr(packed, "kernel_for", lambda *_: forgetful)
    wrong, _ = packed_apart(experiment, *given, "cpu")
    assert wrong > gpu.PACKED_TOLERANCE
