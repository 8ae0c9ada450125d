import pytest
import torch

from ehr_ray.families.set_vae.composition import Composition
from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.loss import loss

SCHEDULED = {"beta": 0.2, "free_bits": 0.0}


def test_it_is_the_log_likelihood_of_a_bernoulli_for_each_variable():
    torch.manual_seed(0)
    module = Composition(latent=3, reduced=5, width=4)
    latent, directions = torch.randn(2, 3), torch.randn(6, 5)
    code, mask = torch.tensor([[1, 4, 0], [2, 0, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    with torch.no_grad():
        found = module(latent, directions, code, mask)
        logit = module.hidden(latent) @ module.variable(directions).T / 2
        chance = torch.sigmoid(logit + module.base(directions).T)
    for row, present in ((0, {1, 4}), (1, {2})):
        factors = [chance[row, v] if v in present else 1 - chance[row, v] for v in range(6)]
        expected = -sum(float(f.log()) for f in factors)
        assert float(found[row]) == pytest.approx(expected, rel=1e-5)


def test_the_term_is_there_where_it_has_a_weight_and_is_weighted_by_it(make_model, batch):
    plain = loss(make_model().eval(), batch, SCHEDULED, 1)
    told = loss(make_model(composition_weight=0.5).eval(), batch, SCHEDULED, 1)
    assert "composition" not in plain
    assert told["composition"].coef == 0.5
    assert told["composition"].sum > 0
    assert told["composition"].count == plain["recon"].count


def test_an_empty_set_has_no_composition(make_model, make_row, make_config):
    model = make_model(composition_weight=1.0).eval()
    batch = collate([make_row(1, [0, 4])], make_config())
    empty, full = model(batch, 1)["composition"].tolist()
    assert empty == 0
    assert full > 0


def test_training_learns_which_variables_come_together(make_model, make_row, make_config):
    model = make_model(clean=True, composition_weight=1.0)
    batch = collate([make_row(i, [5, 6]) for i in range(8)], make_config())
    batch["code"] = torch.where(batch["mask"], torch.arange(batch["code"].shape[1]), 0)
    odd = {**batch, "code": torch.where(batch["mask"], batch["code"] + 6, 0)}
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for step in range(20):
        optimizer.zero_grad()
        model(batch, step)["composition"].sum().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        usual, other = (model(b, 1)["composition"] for b in (batch, odd))
    assert usual.max() < other.min()
