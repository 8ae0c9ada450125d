"""What training must bring about: a latent that is used, timing that is kept, a baseline beaten."""

import numpy as np
import pytest
import torch

from ehr_ray.experiment import parse
from ehr_ray.families.vitals_vae.loss import loss
from ehr_ray.registry import get_family
from ehr_ray.train import history
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.loop import train
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import make_optimizer
from ehr_ray.train.step import OptimizerStep

STEPS = 200
HOURS = 48


def patients(first, number, hours=HOURS):
    """Patients with a level and one event of 10 hours at an hour of their own; half observed."""
    torch.manual_seed(first)
    at = torch.randint(8, hours - 8, (number,))
    level = torch.randn(number, 1, 7)
    wave = torch.exp(-(((torch.arange(hours)[None] - at[:, None]) / 5.0) ** 2))
    value = level + 3 * wave[..., None] + 0.2 * torch.randn(number, hours, 7)
    observed = torch.rand(number, hours, 7) < 0.5
    ids = torch.arange(first, first + number)
    return {"subject_id": ids, "value": value * observed, "observed": observed}, at


@pytest.fixture(scope="module")
def trained(make_model):
    model = make_model(
        last_hour=HOURS - 1, hide=0.1, landmark_share=0.0, width=16, latent=12, trend_bins=24
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for step in range(STEPS):
        terms = loss(
            model,
            patients(1000 * (step % 40), 32)[0],
            {"beta": 1.0, "free_bits": 0.1},
            2 * step + 1,
        )
        optimizer.zero_grad()
        sum(t.coef * t.sum / t.count for t in terms.values()).backward()
        optimizer.step()
    return model.eval()


def test_unseen_patients_are_reconstructed_better_than_by_their_means(trained):
    batch, _ = patients(10**6, 64)
    with torch.no_grad():
        curve, _ = trained.decode(trained.encode(batch).mu)
    seen, value = batch["observed"], batch["value"]
    mean = (value * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True)
    ours, theirs = ((c - value)[seen].square().mean() for c in (curve, mean.expand_as(value)))
    assert ours < 0.7 * theirs


def test_the_latent_is_used(trained):
    batch, _ = patients(10**6, 64)
    with torch.no_grad():
        posterior = trained.encode(batch)
    active = (posterior.mu.var(0) > 0.01).sum()
    assert active >= 9


@pytest.mark.parametrize(("before", "after"), [(4, 16), (8, 32), (16, 28), (28, 36), (36, 4)])
def test_moving_an_event_moves_the_latent_by_more_than_its_noise(before, after, trained):
    """Length of the step against the posterior's standard deviation, all dimensions together."""
    value = torch.zeros(2, HOURS, 7)
    value[0, before : before + 10], value[1, after : after + 10] = 2.0, 2.0
    batch = {
        "subject_id": torch.tensor([1, 2]),
        "value": value,
        "observed": torch.ones(2, HOURS, 7, dtype=torch.bool),
    }
    with torch.no_grad():
        posterior = trained.encode(batch)
    step = posterior.mu[1] - posterior.mu[0]
    for noise in (0.5 * posterior.logvar).exp():
        assert step.norm() > noise.norm()


def test_no_branch_becomes_constant_over_any_range_of_hours(trained):
    """Each hour differs from the one before it, for every patient, by every branch."""
    batch, _ = patients(10**6, 16)
    with torch.no_grad():
        merged, branches = trained.decode(trained.encode(batch).mu)
    for curves in (merged, *branches):
        assert (curves.diff(dim=1).abs() > 1e-4).any(2).all()


def test_an_encoder_that_learns_nothing_is_held_not_merely_left_without_a_gradient(
    tiny_experiment, make_loader, synthetic_vocabulary
):
    """A gradient of zero would let weight decay and moments move it from under the decoder."""
    experiment = tiny_experiment("vitals_vae", {"train.weight_decay": 0.1})
    family, loader = get_family("vitals_vae"), make_loader(experiment)
    model = family.build(experiment.model, synthetic_vocabulary)
    optimizer, backend = make_optimizer(model, experiment.train), LocalBackend()
    take_step = OptimizerStep(experiment, family, model, optimizer, backend, Sums(backend))
    steps = loader.train_steps(0, 0, 0, 1)
    moved = []
    for share in (0.0, 1.0):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        take_step(next(steps), {"beta": 1.0, "free_bits": 0.0, "mean_share": share}, 1)
        after = model.state_dict()
        moved.append({n.split(".")[0] for n in before if not torch.equal(before[n], after[n])})
    steps.close()
    assert moved[0] >= {"encoder", "head", "decoder"}
    assert moved[1] == {"decoder", "log_noise"}


def test_a_config_with_the_published_section_trains(
    synthetic_cohort, make_loader, synthetic_vocabulary, tmp_path
):
    section = {"latent_dim": 4, "base_channels": 8, "scales": [3, 15, 63, 255], "beta": 0.5}
    section |= {"beta_warmup_epochs": 1, "cyclical_period": 2, "free_bits": 2.0, "epochs": 2}
    section |= {"batch_size": 8}
    raw = {"vae": section, "data": {"cohort": str(synthetic_cohort)}}
    raw |= {"model": {"first_hour": 0, "last_hour": 47, "stem": 4, "trend_bins": 8}}
    raw |= {"train": {"warmup_epochs": 2}}
    experiment = parse(raw)
    family, loader = get_family("vitals_vae"), make_loader(experiment)
    train(experiment, family, synthetic_vocabulary, loader, LocalBackend(), tmp_path)
    reports = history.read(tmp_path)
    assert len(reports) == 2
    assert reports["beta"].max() <= 0.5
    assert (reports["free_bits"] == 2.0).all()
    assert loader.steps_per_epoch > 2
    assert reports["lr"].tolist() == pytest.approx([5e-4, 1e-3])
    assert (reports["train/kl"] >= 4 * 2.0 - 1e-3).all()  # four dimensions at their floor or above
    assert np.isfinite(reports["val/objective"]).all()
