import pytest
import torch

from ehr_ray.families.set_vae import wrong_sets
from ehr_ray.families.set_vae.chunking import chosen
from ehr_ray.families.set_vae.sequence import experts
from ehr_ray.families.set_vae.sequence.anomaly_scores import anomalies
from ehr_ray.families.set_vae.sequence.loss import loss
from ehr_ray.families.set_vae.wrong_sets import made_wrong, one_set_each


@pytest.fixture
def crowd(make_row, made_batch):
    """Eight patients who share variables, one of them with sets of one token, one with none."""
    rows = [make_row(i, [5, 9, 7, 12]) for i in range(20, 26)]
    return made_batch(*rows, make_row(30, [1, 1]), make_row(31, [0]))


@pytest.fixture
def model(make_model):
    return make_model().eval()


def test_every_set_is_scored_and_one_of_each_patient_in_each_wrong_way(model, crowd):
    with torch.no_grad():
        found, again = anomalies(model, crowd), anomalies(model, crowd)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert found["kind"].bincount().tolist() == [26, 6, 6, 6, 6, 6, 6]
    real, clean = crowd["mask"].any(1), found["kind"] == 0
    for name, source in (("patient", "patient"), ("set", "set_index"), ("minute", "minute")):
        assert torch.equal(found[name][clean], crowd[source][real])
        assert torch.equal(found[name][found["kind"] == 1], found[name][found["kind"] == 4])
    torch.testing.assert_close(found["nelbo"], found["recon"] + wrong_sets.BETA * found["kl"])
    assert (found["kl"] > 0).all()


def test_recorded_sets_are_scored_by_what_was_expected(model, crowd):
    with torch.no_grad():
        found, beliefs = anomalies(model, crowd), model.beliefs(crowd)
    real = crowd["mask"].any(1)
    prior = beliefs.p_mu, beliefs.p_logvar
    kl = experts.divergence(beliefs.post_mu, beliefs.post_logvar, *prior).sum(1)[real]
    clean = found["kind"] == 0
    torch.testing.assert_close(found["kl"][clean], kl)


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_wrong_set_is_scored_against_the_history_as_it_was(model, crowd, monkeypatch, kind):
    """As if the set alone had been changed in the stay; with no change, as recorded."""
    names = {1: "resampled", 2: "shifted", 3: "swapped"}
    which = one_set_each(crowd, crowd["mask"])
    sets = chosen(crowd, which)
    wrong = next(s["value"] for k, _, s in made_wrong(crowd, model.config.clip_value) if k == kind)
    stay = {**crowd, "value": crowd["value"].clone()}
    stay["value"][which] = wrong
    with torch.no_grad():
        found = anomalies(model, crowd)
        beliefs = model.beliefs(stay)
        prior = beliefs.p_mu, beliefs.p_logvar
        expected = experts.divergence(beliefs.post_mu, beliefs.post_logvar, *prior).sum(1)[which]
        ours = found["kl"][found["kind"] == kind]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        monkeypatch.setattr(wrong_sets, names[kind], lambda *_: sets["value"])
        same = anomalies(model, crowd)
    clean = same["kl"][same["kind"] == 0]
    at = torch.zeros(len(crowd["mask"]), dtype=torch.bool)
    at[which] = True
    at = at[crowd["mask"].any(1)]
    torch.testing.assert_close(same["kl"][same["kind"] == kind], clean[at], rtol=1e-4, atol=1e-4)


def test_stays_without_a_token_have_no_scores_and_no_error(model, make_row, made_batch):
    with torch.no_grad():
        found = anomalies(model, made_batch(make_row(1, [0]), make_row(2, [0])))
    assert all(len(values) == 0 for values in found.values())


def test_the_nelbo_judges_the_composition_by_its_weight(make_model, crowd):
    model = make_model(composition_weight=0.5).eval()
    with torch.no_grad():
        found = anomalies(model, crowd)
        terms = loss(model, crowd, {"beta": 0.2, "free_bits": 0.0, "capacity": 0.0}, 1)
    parts = found["recon"] + 0.5 * found["composition"] + wrong_sets.BETA * found["kl"]
    torch.testing.assert_close(found["nelbo"], parts)
    assert (found["composition"] > 0).all()
    assert terms["composition"].coef == 0.5
    assert terms["composition"].sum > 0
