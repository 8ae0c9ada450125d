import pytest
import torch

from ehr_ray.families.vitals_vae.config import SCALES
from ehr_ray.families.vitals_vae.predict import (
    code_use,
    components,
    diagnosed,
    grids,
    latents,
    predict,
)

BRANCHES = tuple(scale.name for scale in SCALES)


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


def test_a_published_objective_is_decoded_where_it_was_trained(make_model, batch):
    """Its likelihood has no weight to undo: curves are those of the posterior mean itself."""
    model = make_model(arch="lstm", objective="published", evidence=0.25).eval()
    with torch.no_grad():
        curve, _ = model.decode(model.encode(batch).mu)
        found = grids(model, batch)
    torch.testing.assert_close(found["estimate"], curve.flatten(1))


def test_a_published_objective_is_measured_on_cells_it_is_not_shown(make_model, batch):
    """It hides nothing itself, and its trials would have no score."""
    model = make_model(arch="lstm", objective="published").eval()
    with torch.no_grad():
        found = grids(model, batch)
    hidden = found["hidden"].bool()
    error = (found["imputed"] - found["value"])[hidden].square().mean()
    assert hidden.any()
    assert diagnosed(model, [batch])["mse_hidden"] == pytest.approx(float(error), rel=1e-5)
    assert diagnosed(make_model().eval(), [batch]) == {}


def test_the_same_cells_test_every_model(make_model, batch):
    hidden = [grids(make_model(hide=h).eval(), batch)["hidden"] for h in (0.0, 0.3)]
    assert torch.equal(*hidden)
    assert hidden[0].any()
