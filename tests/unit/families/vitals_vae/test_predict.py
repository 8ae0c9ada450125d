import pytest
import torch

from ehr_ray.families.vitals_vae.conv import BRANCHES
from ehr_ray.families.vitals_vae.predict import code_use, components, grids, latents, predict


@pytest.mark.parametrize("arch", ["conv", "lstm", "vq"])
def test_one_row_a_patient(arch, make_model, batch):
    model = make_model(arch=arch).eval()
    with torch.no_grad():
        found = predict(model, batch)
    assert {len(value) for value in found.values()} == {4}
    assert found["embedding"].shape == (4, model.config.embedding_width)
    assert torch.equal(found["n_obs"], batch["observed"].sum((1, 2)))
    assert ("codes" in found) == (arch == "vq")


def test_the_divergence_and_the_error_are_those_of_the_mean(make_model, batch):
    model = make_model().eval()
    with torch.no_grad():
        found, posterior = predict(model, batch), latents(model, batch)
        curve, _ = model.decode(model.encode(batch).whole_mean(model.config.evidence))
    seen = batch["observed"][1]
    error = (curve[1] - batch["value"][1])[seen].square().mean()
    torch.testing.assert_close(found["recon_error"][1], error)
    mu, logvar = posterior["mu"][1], posterior["logvar"][1]
    expected = 0.5 * (logvar.exp() + mu.square() - 1 - logvar).sum()
    torch.testing.assert_close(found["kl_nats"][1], expected)


def test_a_patient_without_observations_is_embedded(make_model, make_batch):
    batch = make_batch([1, 2], share=0.0)
    with torch.no_grad():
        found = predict(make_model().eval(), batch)
    assert all(torch.isfinite(value.float()).all() for value in found.values())
    assert found["recon_error"].tolist() == [0, 0]


def test_codes_have_no_posterior(make_model, batch):
    assert latents(make_model(arch="vq").eval(), batch) == {}


def test_the_imputed_curve_is_made_without_the_hidden_cells(make_model, batch):
    model = make_model().eval()
    with torch.no_grad():
        found = grids(model, batch)
        hidden = found["hidden"].view(4, 96, 7).bool()
        changed = {**batch, "value": batch["value"] + 5 * hidden}
        other = grids(model, changed)
    assert hidden.any()
    assert not (hidden & ~batch["observed"]).any()
    assert torch.equal(found["imputed"], other["imputed"])
    assert not torch.equal(found["estimate"], other["estimate"])


def test_components_are_branches_in_units(make_model, batch):
    model = make_model().eval()
    with torch.no_grad():
        found = components(model, batch)
        _, branches = model.decode(model.encode(batch).whole_mean(model.config.evidence))
    assert set(found) == {"patient", *BRANCHES}
    curve = found["daily"].view(4, 96, 7)
    torch.testing.assert_close(curve, branches[2] * model.spread + model.centre)
    assert components(make_model(arch="lstm").eval(), batch) == {}


def test_the_use_of_codes_is_that_of_all_patients_together(make_model, make_batch):
    model = make_model(arch="vq").eval()
    with torch.no_grad():
        whole = code_use(model, [make_batch(range(12))])
        parts = code_use(model, [make_batch(range(5)), make_batch(range(5, 12))])
    assert whole == parts
    assert 1 <= whole["code_perplexity"] <= whole["codes_used"] <= 16
    assert whole["code_perplexity_share"] == whole["code_perplexity"] / 16
    assert code_use(model, []) == {}


def test_a_model_without_codes_reads_no_patient(make_model):
    assert code_use(make_model(), (pytest.fail("read") for _ in range(1))) == {}
