import dataclasses

import pytest
import torch

from ehr_ray.family import Diagnose, Training
from ehr_ray.registry import get_family
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.validate import summarised, validate


@pytest.fixture
def measure(tiny_experiment, make_loader, synthetic_vocabulary):
    """Validate a SetVAE in training mode: measure({field: value of the record})."""
    experiment = tiny_experiment()
    loader = make_loader(experiment)

    def run(**changes):
        family = dataclasses.replace(get_family("set_vae"), **changes)
        torch.manual_seed(0)
        model = family.build(experiment.model, synthetic_vocabulary).train()
        values = validate(family, model, loader, LocalBackend(), precision="float32")
        return values, model

    return run


def test_validation_repeats_whatever_was_drawn_before_and_leaves_training_on(measure):
    first, model = measure()
    torch.manual_seed(99)
    again, _ = measure()
    assert first == again
    assert model.training
    expected = first["val/recon"] + 0.2 * first["val/kl"]
    assert first["val/objective"] == pytest.approx(expected)


def test_validation_uses_the_fixed_values_of_the_record(measure):
    first, _ = measure()
    other, _ = measure(eval_scheduled={"beta": 1.0, "free_bits": 0.0})
    assert other["val/kl"] == first["val/kl"]
    assert other["val/objective"] == pytest.approx(first["val/recon"] + first["val/kl"])


def test_what_a_family_diagnoses_is_measured_without_dropout_on_fixed_patients(measure):
    seen = []

    def look(module, batches):
        seen.append((module.training, sum(len(batch["subject_id"]) for batch in batches)))
        return {"depth": 2.0}

    diagnose = Diagnose(look, lambda _reports: [], patients=5)
    values, _ = measure(training=Training(diagnose=diagnose))
    assert values["val/depth"] == 2.0
    assert seen == [(False, 5)]


def test_summaries_are_made_of_train_and_of_tuning_apart():
    training = Training(summarise=lambda means: {"double": 2 * means["a"]})
    family = dataclasses.replace(get_family("set_vae"), training=training)
    values = {"train/a": 1.0, "val/a": 3.0}
    assert summarised(family, values) == {"train/double": 2.0, "val/double": 6.0}
    assert summarised(get_family("set_vae"), values) == {}
