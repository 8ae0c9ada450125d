from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ehr_ray.families.jepa.data import collate, transform
from ehr_ray.families.jepa.loss import contrast, loss, needs_pairs
from ehr_ray.families.jepa.model import JEPA

HOUR = 60 * 60_000_000
SCHEDULED = {"momentum": 0.996}
SEED = 5


def test_terms_are_smooth_l1_over_hidden_rows_and_observed_values(make_model, make_batch):
    model, batch = make_model(value_weight=0.7), make_batch([20, 7, 1])
    terms, out = loss(model, batch, SCHEDULED, SEED), model(batch, 5)
    wanted = out["wanted"]
    assert wanted.any(1).tolist() == [True, True, False]
    mean = F.smooth_l1_loss(out["predicted"][wanted], out["goal"][wanted])
    torch.testing.assert_close(terms["latent"].sum / terms["latent"].count, mean)
    seen = out["observed"]
    mean = F.smooth_l1_loss(out["estimate"][seen], out["level"][seen])
    torch.testing.assert_close(terms["value"].sum / terms["value"].count, mean)
    assert terms["value"].coef == 0.7
    assert terms["padding"].sum == 20 - 7 + 20 - 1
    assert terms["padding"].count == 60


@pytest.mark.parametrize(
    ("name", "weight", "coefs"),
    [
        ("vicreg", None, {"variance": 1.0, "covariance": 1 / 25}),
        ("vicreg", 5.0, {"variance": 5.0, "covariance": 1 / 5}),
        ("sigreg", None, {"isotropy": 0.05}),
        ("none", 5.0, {}),
    ],
)
def test_a_regulariser_adds_its_terms_and_reaches_the_encoder(
    make_model, make_batch, name, weight, coefs
):
    model = make_model(regulariser=name, regulariser_weight=weight, value_weight=0.0)
    terms = loss(model, make_batch([9, 5, 12, 6]), SCHEDULED, SEED)
    added = {key: terms[key].coef for key in terms.keys() - {"latent", "padding"}}
    assert added == pytest.approx(coefs)
    for key in added:
        model.zero_grad()
        terms[key].sum.backward(retain_graph=True)
        assert model.encoder.embed[0].weight.grad.abs().max() > 0
        assert terms[key].count == 4


def test_a_contrast_is_least_for_the_states_that_belong_together():
    states = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    own, other = contrast(states, states), contrast(states, states.roll(1, 0))
    cosine = F.normalize(states, dim=-1) @ F.normalize(states, dim=-1).T
    torch.testing.assert_close(own, -(10 * cosine).log_softmax(1).diagonal())
    assert own.mean() < 0.2
    assert other.mean() > 5
    same = contrast(torch.ones(5, 8), torch.ones(5, 8))
    torch.testing.assert_close(same, torch.full((5,), 5.0).log())
    assert contrast(states[:0], states[:0]).sum() == 0


def test_hidden_rows_are_told_apart_by_infonce(make_model, make_batch):
    model = make_model(latent_loss="infonce")
    batch = make_batch([20, 7, 1])
    terms, out = loss(model, batch, SCHEDULED, SEED), model(batch, SEED)
    wanted = out["wanted"]
    expected = contrast(out["predicted"][wanted], out["goal"][wanted]).mean()
    torch.testing.assert_close(terms["latent"].sum / terms["latent"].count, expected)
    assert needs_pairs(model.config) == "model.latent_loss=infonce"
    assert needs_pairs(make_model().config) is None


@pytest.mark.parametrize("latent_loss", ["smooth_l1", "infonce"])
def test_a_batch_with_nothing_to_predict_is_no_accident(make_model, make_batch, latent_loss):
    model = make_model(latent_loss=latent_loss)
    terms = loss(model, make_batch([1, 0]), SCHEDULED, SEED)
    total = sum(term.coef * term.sum for term in terms.values())
    assert total == 0
    total.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_bf16_gives_the_same_loss_to_its_precision(make_model, make_batch):
    model, batch = make_model(), make_batch([20, 7, 12])
    exact = loss(model, batch, SCHEDULED, SEED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss(model, batch, SCHEDULED, SEED)
    for name in ("latent", "value"):
        assert rounded[name].sum.dtype == torch.float32
        torch.testing.assert_close(rounded[name].sum, exact[name].sum, rtol=0.02, atol=0.02)
    sum(term.coef * term.sum for term in rounded.values()).backward()
    assert torch.isfinite(model.encoder.embed[0].weight.grad).all()


def test_visits_are_predicted_as_hours_are(make_patient, make_config, vocabulary):
    """Four admissions of one patient, three of another; values and gaps of hidden ones are told."""
    config = make_config(rows="visits")
    patients = [
        replace(make_patient(i, 40), admitted=np.arange(n) * 10 * HOUR) for i, n in ((1, 4), (2, 3))
    ]
    batch = collate([transform(p, config, vocabulary) for p in patients], config)
    assert batch["mask"].sum(1).tolist() == [4, 3]
    assert batch["minute"][0].tolist() == [0, 600, 1200, 1800]
    torch.manual_seed(0)
    model = JEPA(config, vocabulary)
    terms = loss(model, batch, SCHEDULED, SEED)
    assert terms["latent"].count >= 2
    assert terms["value"].count > terms["latent"].count
    sum(term.coef * term.sum for term in terms.values()).backward()
    assert model.encoder.embed[0].weight.grad.abs().max() > 0
