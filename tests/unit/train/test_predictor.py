from dataclasses import replace

import pytest
import torch

from ehr_ray.registry import get_family
from ehr_ray.train.checkpoint import Loaded
from ehr_ray.train.predictor import Predictor


@pytest.fixture
def predictor(tiny_experiment, synthetic_vocabulary):
    experiment, family = tiny_experiment(), get_family("set_vae")
    torch.manual_seed(0)
    model = family.build(experiment.model, synthetic_vocabulary).eval()
    return Predictor(family, experiment.model, synthetic_vocabulary, model)


def test_patients_are_predicted_in_order_as_each_is_alone(predictor, synthetic_patients):
    patients = synthetic_patients["train"][:5]
    parts = list(predictor.over_patients(iter(patients), size=2))
    assert [len(part["embedding"]) for part in parts] == [2, 2, 1]
    together = torch.cat([part["embedding"] for part in parts])
    assert not together.requires_grad
    for patient, embedding in zip(patients, together, strict=True):
        alone = predictor.outputs(predictor.batch(predictor.rows([patient])))
        torch.testing.assert_close(alone["embedding"][0], embedding, rtol=1e-4, atol=1e-5)


def test_another_output_is_asked_of_the_same_batches(predictor, synthetic_patients):
    latents = predictor.family.evaluation.latents
    (found,) = predictor.over_patients(synthetic_patients["train"][:3], latents)
    assert set(found["patient"].tolist()) == {0, 1, 2}
    assert found["mu"].shape == found["logvar"].shape


def test_on_the_cpu_a_run_trained_in_bf16_predicts_in_float32(predictor, synthetic_patients):
    patients = synthetic_patients["train"][:3]
    reduced = replace(predictor, precision="bf16")
    batch = predictor.batch(predictor.rows(patients))
    assert torch.equal(reduced.outputs(batch)["embedding"], predictor.outputs(batch)["embedding"])
    wanted = {"half": torch.ones(2, dtype=torch.bfloat16), "whole": torch.ones(2).long()}
    found = reduced.outputs(batch, lambda *_: wanted)
    assert [v.dtype for v in found.values()] == [torch.float32, torch.int64]


def test_a_loaded_run_predicts_as_it_was_trained(predictor, tiny_experiment):
    experiment = tiny_experiment(changes={"train.precision": "bf16"})
    parts = (predictor.family, predictor.vocabulary, predictor.model)
    assert Predictor.of(Loaded(experiment, *parts)).precision == "bf16"
    plain = Predictor.of(Loaded(tiny_experiment(), *parts))
    assert (plain.precision, plain.matmul_precision) == ("float32", "highest")
    experiment = tiny_experiment(changes={"train.matmul_precision": "high"})
    assert Predictor.of(Loaded(experiment, *parts)).matmul_precision == "high"


def test_on_the_cpu_products_are_as_the_process_has_them(predictor, synthetic_patients):
    """On another device they are set: tests/contract/second_device_cases.py."""
    batch, told = predictor.batch(predictor.rows(synthetic_patients["train"][:2])), []
    predictor.outputs(batch, lambda *_: told.append(torch.backends.cudnn.allow_tf32) or {})
    assert told == [torch.backends.cudnn.allow_tf32]


def test_rows_and_batches_need_no_model(predictor, synthetic_patients):
    plain = Predictor(predictor.family, predictor.config, predictor.vocabulary)
    patients = synthetic_patients["train"][:2]
    batch = plain.batch(plain.rows(patients))
    assert batch["subject_id"].tolist() == [patient.subject_id for patient in patients]
