import pytest
import torch

from ehr_ray.families.vitals_vae.config import SCALES
from ehr_ray.families.vitals_vae.model import Posterior

BRANCHES = tuple(scale.name for scale in SCALES)

ARCHS = ("conv", "lstm", "vq")


@pytest.mark.parametrize("arch", ARCHS)
def test_what_comes_out_has_the_grids_shape(arch, make_model, batch):
    out = make_model(arch=arch)(batch, 1)
    assert out["merged"].shape == (4, 96, 7)
    assert len(out["branches"]) == (0 if arch == "lstm" else len(BRANCHES))
    assert ("codes" in out) == (arch == "vq")
    assert ("logvar" in out) == (arch != "vq")
    assert out["mu"].shape == (4, 12 if arch == "vq" else 6)


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_leaks_from_cells_that_are_hidden_or_not_observed(arch, make_model, batch):
    model = make_model(arch=arch).eval()
    hidden = batch["observed"] & (torch.arange(96) % 2 == 0)[None, :, None]
    changed = {**batch, "value": batch["value"] + 5 * (hidden | ~batch["observed"])}
    with torch.no_grad():
        ours, theirs = model.encode(batch, hidden), model.encode(changed, hidden)
        whole = model.encode(changed)
    assert torch.equal(ours.mu, theirs.mu)
    if arch != "vq":
        assert not torch.equal(ours.mu, whole.mu)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_patient_does_not_depend_on_the_batch(arch, training, make_model, make_batch):
    model = make_model(arch=arch).train(training)
    with torch.no_grad():
        whole = model(make_batch([3, 5, 8]), 7)
        alone = model(make_batch([8]), 7)
    torch.testing.assert_close(whole["merged"][2], alone["merged"][0], rtol=1e-4, atol=1e-5)


def test_the_latent_is_sampled_by_patient_and_seed(make_model, batch):
    model = make_model().eval()
    with torch.no_grad():
        one, same, other = model(batch, 1), model(batch, 1), model(batch, 2)
    assert torch.equal(one["merged"], same["merged"])
    assert not torch.equal(one["merged"], other["merged"])


def test_statistics_are_not_part_of_the_weights(make_model):
    """So that weights of one cohort can start the model of another."""
    names = set(make_model().state_dict())
    assert not names & {"centre", "spread", "carry_hours"}
    assert "log_noise" in names


def test_units_undo_the_z_scores(make_model):
    model = make_model()
    names = [vital.name for vital in model.config.vitals]
    at = model.in_units(torch.ones(7))[names.index("HR")]
    assert float(at) == pytest.approx(88.0)


def test_no_layer_mixes_patients(make_model):
    for arch in ARCHS:
        assert not [m for m in make_model(arch=arch).modules() if "BatchNorm" in type(m).__name__]


def test_the_whole_mean_is_the_posterior_mean_without_the_weight_of_the_likelihood():
    # One number z ~ N(0, 1), seen as 3 with variance 0.5: tempered by 0.4, and as it is.
    weight, seen, noise = 0.4, 3.0, 0.5
    tempered = 1 + weight / noise
    posterior = Posterior(
        mu=torch.full((1, 2), weight / noise * seen / tempered),
        logvar=torch.full((1, 2), 1 / tempered).log(),
    )
    expected = torch.full((1, 2), seen / noise / (1 + 1 / noise))
    found = posterior.whole_mean(weight)
    torch.testing.assert_close(found, expected)
    assert torch.equal(posterior.whole_mean(1.0), posterior.mu)


@pytest.mark.parametrize("arch", ARCHS)
def test_one_vital_sign_is_told_by_the_others_too(arch, make_model, make_batch):
    model, batch = make_model(arch=arch).eval(), make_batch([3, 5])
    batch["value"].requires_grad_()
    curves, _ = model.decode(model.encode(batch).mu)
    curves[..., 0].sum().backward()
    told = batch["value"].grad.abs().sum((0, 1))
    assert (told > 0).all()
