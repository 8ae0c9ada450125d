import numpy as np
import pytest
import torch
from torch import nn

from ehr_ray.families.hcat.predict import (
    baseline_codes,
    dropout_on,
    imputations,
    latents,
    mc_dropout,
    measure,
    predict,
    task_outputs,
    thinned,
    warnings,
    with_modalities_missing,
)


def test_it_answers_both_tasks_and_repeats(make_model, make_config, batch):
    model = make_model().eval()
    found = predict(model, batch)
    assert set(task_outputs(make_config()).values()) <= set(found)
    again = predict(model, batch)
    assert all(torch.equal(found[k], again[k]) for k in found)


def test_every_dropout_is_on_in_monte_carlo_and_off_after(make_model, batch):
    model = make_model(dropout=0.3).eval()
    layers = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    ran = set()
    for layer in layers:
        layer.register_forward_hook(lambda m, i, o: ran.add(id(m)) if (o != i[0]).any() else None)
    passes = mc_dropout(model, batch, 8)
    assert {id(layer) for layer in layers} == ran
    assert passes.std(0).min() > 0
    assert torch.equal(passes, mc_dropout(model, batch, 8))
    with dropout_on(model):
        assert all(layer.training for layer in layers)
    assert not any(layer.training for layer in layers)
    spread = predict(make_model(dropout=0.3, mc_samples=4).eval(), batch)["survival_5y_std"]
    assert spread.shape == (4,)


def test_imputations_are_of_tokens_that_are_there(make_model, batch):
    model = make_model().eval()
    found = imputations(model, batch)
    assert len(found["patient"]) == int(model.tokens(batch).present.sum())
    assert imputations(make_model(missing="mask").eval(), batch) == {}
    assert latents(make_model(missing="mask").eval(), batch) == {}
    assert latents(model, batch)["mu"].shape == (4, 8)


def test_taking_modalities_away_changes_predictions_and_leaves_one(make_model, batch):
    model = make_model().eval()
    whole = predict(model, batch)["survival_5y_logit"]
    for missing in (1, 4):
        found = thinned(model, batch, missing, draw=0)
        assert torch.equal(found, thinned(model, batch, missing, draw=0))
        assert (found[:, 0] - whole).abs().min() > 0


def test_every_number_of_missing_modalities_has_an_entry_a_patient(make_model, batch):
    model = make_model().eval()
    found = with_modalities_missing(model, batch)
    assert found["patient"].tolist() == [0, 1, 2, 3] * 4
    assert found["missing"].tolist() == sorted([1, 2, 3, 4] * 4)
    three = found["survival_5y_logit"][found["missing"] == 3]
    torch.testing.assert_close(three, thinned(model, batch, 3, 0)[:, 0])


def test_baselines_read_no_long_vectors(make_config, vocabulary, monkeypatch):
    kept = baseline_codes(make_config(), vocabulary)
    assert kept[vocabulary.codes.index("TMA//HE//0")]
    assert not kept[vocabulary.codes.index("MEDS_DEATH")]
    monkeypatch.setitem(baseline_codes.__globals__, "MAX_GROUP", 5)
    kept = baseline_codes(make_config(), vocabulary)
    assert not kept[vocabulary.codes.index("TMA//HE//0")]
    assert kept[vocabulary.codes.index("CLINICAL//0")]


def test_measures_skip_unknown_labels_and_warn_of_what_is_too_good(make_model, make_batch):
    model, batch = make_model().eval(), make_batch(range(1, 21))
    with torch.no_grad():
        logit = model.predict(model.tokens(batch))[0].logit
    batch["label"][:, 0] = (logit[:, 0] > logit[:, 0].median()).float()
    batch["label"][:, 1] = -1
    found = measure(model, [batch])
    assert found["auc_surv"] == 1
    right = (logit[:, 0] > 0) == (batch["label"][:, 0] > 0)
    assert found["acc_surv"] == pytest.approx(float(right.float().mean()))
    assert found["auc_rec"] == 0.5
    assert found["auc_avg"] == 0.75
    assert np.isnan(found.pop("nll_rec"))
    assert np.isfinite(list(found.values())).all()
    assert found["nll_avg"] == found["nll_surv"]
    assert ["first outcome" in line for line in warnings([found])] == [True]
    assert warnings([]) == []
    assert measure(model, []) == {}


def test_an_outcome_of_one_class_has_a_cross_entropy_and_an_unknown_one_has_none(
    make_model, make_batch
):
    """Checkpoints and trials are chosen by it, so that it may not be the same for all of them."""
    model, batch = make_model().eval(), make_batch(range(1, 9))
    with torch.no_grad():
        logit = model.predict(model.tokens(batch))[0].logit.double()
    batch["label"][:] = 1
    found = measure(model, [batch])
    assert found["nll_surv"] == pytest.approx(float(-logit[:, 0].sigmoid().log().mean()))
    batch["label"][:] = -1
    assert np.isnan(measure(model, [batch])["nll_avg"])


@pytest.mark.parametrize("missing", ["impute", "mask"])
def test_a_patient_is_told_alike_alone_and_among_others(make_model, make_batch, missing):
    model = make_model(missing=missing).eval()
    together = predict(model, make_batch([3, 8], {8: [1]}))
    alone = predict(model, make_batch([8], {8: [1]}))
    for name, value in alone.items():
        torch.testing.assert_close(value[0], together[name][1], rtol=1e-4, atol=1e-5)
