import dataclasses

import numpy as np
import pytest
import torch

from ehr_ray.errors import InputError
from ehr_ray.events.options import RECURRENCE_2Y
from ehr_ray.experiment import parse
from ehr_ray.families.hcat.family import FAMILY
from ehr_ray.families.hcat.imputer import AdvancedIterativeImputer
from ehr_ray.families.hcat.model import fit_buffers
from ehr_ray.train.checkpoint import save_checkpoint
from ehr_ray.train.initialise import initialise


def logits(model, batch):
    with torch.no_grad():
        return model.eval().predict(model.tokens(batch))[0].logit


def test_the_imputer_reaches_predictions_of_patients_who_miss_a_modality_and_of_no_other(
    make_model, batch
):
    model = make_model()
    before = logits(model, batch)
    torch.manual_seed(99)
    with torch.no_grad():
        for parameter in model.imputer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    moved = (logits(model, batch) - before).abs().amax(1)
    complete = model.tokens(batch).present.all(1)
    assert complete.tolist() == [True, True, False, False]
    assert moved[complete].max() == 0
    assert moved[~complete].min() > 1e-4


def test_outcomes_train_the_imputer(make_model, batch):
    model = make_model().train()
    fused, _ = model.predict(model.tokens(batch))
    fused.logit.sum().backward()
    missing = 1  # blood counts, of the third patient
    decoder = model.imputer.vae.decoders[missing]
    assert all(p.grad.abs().max() > 0 for p in decoder.parameters())


def test_some_are_hidden_never_all_and_clinical_is_not_dropped(make_model, make_batch):
    model = make_model(mask_ratio=0.0, moddrop=0.9)
    batch = make_batch(range(1, 200))
    tokens = model.tokens(batch)
    hidden = model.hidden(tokens.present, batch["subject_id"], 5, drop=True)
    assert not hidden[:, 0].any()
    assert 0.85 < hidden[:, 1:].float().mean() < 0.95
    masked = make_model(mask_ratio=0.9).hidden(tokens.present, batch["subject_id"], 5, drop=False)
    assert masked[:, 0].any()
    assert (tokens.present & ~masked).any(1).all()


def test_a_batch_drops_one_modality_for_everybody(make_model, make_batch):
    model = make_model(mask_ratio=0.0, moddrop=0.5, moddrop_mode="per_batch")
    batch = make_batch([1, 2, 3])
    tokens = model.tokens(batch)
    found = set()
    for seed in range(40):
        hidden = model.hidden(tokens.present, batch["subject_id"], seed, drop=True)
        assert (hidden == hidden[0]).all()
        found.add(tuple(hidden[0].nonzero()[:, 0].tolist()))
    assert found == {(), (1,), (2,), (3,), (4,)}


def test_fitting_buffers_takes_weights_of_censoring_and_classes_on_train(make_model, make_batch):
    model = make_model(class_weight="balanced")
    batch = make_batch(range(1, 41))
    batch["label"][:, 1] = (torch.arange(40) < 10).float()
    batch["state"][:20, 0], batch["days"][:20, 0] = 0, 300.0
    batch["label"][:20, 0] = -1
    batch["days"][20:30, 0], batch["state"][20:30, 0] = 900.0, 1
    batch["label"][20:30, 0] = 0
    fit_buffers(model, batch)
    assert model.positive_weight[1] == 3
    weight = model.weights(batch)
    assert not weight[:20, 0].any()
    # Half were lost at 300 days, so everyone still seen stands for two.
    np.testing.assert_allclose(weight[20:30, 0], 2, rtol=1e-5)
    shown = model.tokens(batch)
    assert shown.value[:, 0].mean(0).abs().max() < 1e-5


def test_fitting_buffers_stops_at_a_column_that_is_the_outcome(make_model, make_batch, vocabulary):
    model = make_model()
    batch = make_batch(range(1, 101))
    leak = batch["code"] == vocabulary.codes.index("PATHOLOGY//3")
    batch["value"][leak] = batch["label"][batch["row"][leak], 1]
    with pytest.raises(InputError, match=r"PATHOLOGY//3.*recurrence_2y"):
        fit_buffers(model, batch)


def test_a_cohort_without_modalities_or_outcomes_is_refused(make_model, make_batch):
    """It was told as too few tuning patients, after the first epoch."""
    batch = make_batch(range(1, 41))
    with pytest.raises(InputError, match=r"nobody has a modality; .*hancock"):
        fit_buffers(make_model(), batch | {key: batch[key][:0] for key in ("row", "code", "value")})
    batch["days"][:] = -1
    with pytest.raises(InputError, match=r"of nobody an outcome is known; .*model\.survival"):
        fit_buffers(make_model(), batch)


def test_without_imputation_there_is_no_imputer(make_model, batch):
    model = make_model(missing="mask")
    assert model.imputer is None
    assert not [m for m in model.modules() if isinstance(m, AdvancedIterativeImputer)]
    assert torch.isfinite(logits(model, batch)).all()


def test_init_from_leaves_behind_what_was_fitted_on_another_cohort(
    make_model, make_batch, vocabulary, tmp_path
):
    """Class weights and horizons of the old run would stand where this one fits none."""
    soon = dataclasses.replace(RECURRENCE_2Y, horizon_days=365)
    old, new = make_model(class_weight="balanced", recurrence=soon), make_model(seed=1)
    fit_buffers(old, make_batch(range(1, 41)))
    experiment = parse({"family": "hcat", "name": "old", "data": {"cohort": "c"}})
    save_checkpoint(tmp_path, old, experiment, vocabulary)
    before = {name: buffer.clone() for name, buffer in new.named_buffers()}
    lines = initialise(new, tmp_path, FAMILY, vocabulary)
    assert [n for n, b in new.named_buffers() if not torch.equal(b, before[n])] == []
    assert all(torch.equal(p, old.get_parameter(n)) for n, p in new.named_parameters())
    assert "token_mean: kept, made of this cohort" in lines
