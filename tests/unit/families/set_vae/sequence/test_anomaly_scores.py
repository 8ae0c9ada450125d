import pytest
import torch

from ehr_ray.families.set_vae.chunking import chosen
from ehr_ray.families.set_vae.sequence import anomaly_scores, experts
from ehr_ray.families.set_vae.sequence.anomaly_scores import (
    anomalies,
    one_set_each,
    resampled,
    shifted,
    swapped,
)


@pytest.fixture
def crowd(make_row, made_batch):
    """Eight patients who share variables, one of them with sets of one token, one with none."""
    rows = [make_row(i, [5, 9, 7, 12]) for i in range(20, 26)]
    return made_batch(*rows, make_row(30, [1, 1]), make_row(31, [0]))


@pytest.fixture
def sets(crowd):
    return chosen(crowd, one_set_each(crowd))


@pytest.fixture
def model(make_model):
    return make_model().eval()


def test_one_set_of_each_patient_that_has_one_of_two_tokens(crowd):
    which = one_set_each(crowd)
    assert crowd["patient"][which].tolist() == [0, 1, 2, 3, 4, 5]
    assert (crowd["mask"][which].sum(1) >= 2).all()
    assert torch.equal(which, one_set_each(crowd))
    assert len(set(crowd["set_index"][which].tolist())) > 1


def test_resampled_values_are_other_patients_of_the_same_variable(crowd, sets):
    values = resampled(crowd, sets, None)
    mask, owner = crowd["mask"], crowd["patient"].unsqueeze(1).expand_as(crowd["mask"])
    changed = 0
    for i, j in sets["mask"].nonzero().tolist():
        same = mask & (crowd["code"] == sets["code"][i, j])
        others = same & (owner != sets["patient"][i])
        assert values[i, j] in crowd["value"][others]
        changed += bool(values[i, j] != sets["value"][i, j])
    assert changed == int(sets["mask"].sum())
    assert torch.equal(values[~sets["mask"]], sets["value"][~sets["mask"]])


def test_a_variable_of_one_patient_alone_keeps_its_values(make_row, made_batch):
    batch = made_batch(make_row(1, [6, 8]))
    sets = chosen(batch, one_set_each(batch))
    assert torch.equal(resampled(batch, sets, None), sets["value"])


def test_one_token_is_shifted_by_three_standard_deviations(crowd, sets):
    change = shifted(crowd, sets, None) - sets["value"]
    assert ((change != 0).sum(1) == 1).all()
    moved = change[change != 0]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 3.0))
    assert {-1.0, 1.0} == set(moved.sign().tolist())
    assert not change[~sets["mask"]].any()
    clipped = shifted(crowd, sets, 2.0)
    assert clipped.abs().max() <= 2.0


def test_two_tokens_exchange_their_values(crowd, sets):
    values = swapped(crowd, sets, None)
    moved = values != sets["value"]
    assert (moved.sum(1) == 2).all()
    assert not (moved & ~sets["mask"]).any()
    for i in range(len(values)):
        assert torch.equal(values[i][moved[i]], sets["value"][i][moved[i]].flip(0))


def test_what_is_made_wrong_repeats_and_the_recorded_values_stay(crowd, sets):
    before = crowd["value"].clone()
    for corrupt in (resampled, shifted, swapped):
        assert torch.equal(corrupt(crowd, sets, None), corrupt(crowd, sets, None))
    assert torch.equal(crowd["value"], before)


def test_every_set_is_scored_and_one_of_each_patient_thrice_more(model, crowd):
    with torch.no_grad():
        found, again = anomalies(model, crowd), anomalies(model, crowd)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert found["kind"].bincount().tolist() == [26, 6, 6, 6]
    real, clean = crowd["mask"].any(1), found["kind"] == 0
    for name, source in (("patient", "patient"), ("set", "set_index"), ("minute", "minute")):
        assert torch.equal(found[name][clean], crowd[source][real])
        assert torch.equal(found[name][found["kind"] == 1], found[name][found["kind"] == 3])
    torch.testing.assert_close(found["nelbo"], found["recon"] + anomaly_scores.BETA * found["kl"])
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
    which = one_set_each(crowd)
    sets = chosen(crowd, which)
    wrong = getattr(anomaly_scores, names[kind])(crowd, sets, model.config.clip_value)
    stay = {**crowd, "value": crowd["value"].clone()}
    stay["value"][which] = wrong
    with torch.no_grad():
        found = anomalies(model, crowd)
        beliefs = model.beliefs(stay)
        prior = beliefs.p_mu, beliefs.p_logvar
        expected = experts.divergence(beliefs.post_mu, beliefs.post_logvar, *prior).sum(1)[which]
        ours = found["kl"][found["kind"] == kind]
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        monkeypatch.setattr(anomaly_scores, names[kind], lambda _batch, sets, _clip: sets["value"])
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
