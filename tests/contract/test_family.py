import dataclasses
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ehr_ray.config.yaml_files import override
from ehr_ray.events.patients import Patient
from ehr_ray.experiment import Experiment, dump, parse
from ehr_ray.family import Family
from ehr_ray.registry import FAMILIES, get_family
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import load, save_checkpoint
from ehr_ray.train.meters import Sums
from ehr_ray.train.optim import learning_rate, make_optimizer, set_lr
from ehr_ray.train.seeds import noise_seed, scheduled_at, seed_step
from ehr_ray.train.step import OptimizerStep
from ehr_ray.train.validate import validate

GOLDEN = Path(__file__).parent / "golden"
SEED = 12345
pytestmark = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture
def family(name):
    return get_family(name)


@pytest.fixture
def experiment(name, tiny_experiment):
    return tiny_experiment(name)


@pytest.fixture
def rows(family, experiment, synthetic_patients, synthetic_vocabulary):
    """Model-ready rows of unlike lengths, the last of a patient without events."""
    patients = synthetic_patients["train"][:5]
    patients = [*patients, patients[0].until(int(patients[0].time[len(patients[0].time) // 3]))]
    config = experiment.model
    return [family.transform(p, config, synthetic_vocabulary) for p in [*patients, nobody()]]


@pytest.fixture
def model(family, experiment, synthetic_vocabulary):
    torch.manual_seed(0)
    return family.build(experiment.model, synthetic_vocabulary)


def nobody():
    return Patient(999, 0, np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32))


def scheduled_of(family):
    return {name: schedule.at(10**6, 10) for name, schedule in family.schema.schedules.items()}


def test_the_record_and_its_config_survive_pickling(family, experiment):
    again = pickle.loads(pickle.dumps(family))
    assert isinstance(again, Family)
    assert again == family
    assert pickle.loads(pickle.dumps(experiment)) == experiment


def test_an_experiment_survives_json(family, experiment):
    raw = json.loads(json.dumps(dump(experiment)))
    assert isinstance(parse(raw), Experiment)
    assert parse(raw) == experiment
    default = {"family": family.name, "name": "x", "data": {"cohort": "c"}}
    assert parse(override(default, {})).model == family.schema.config()


def test_the_cache_key_names_fields_of_the_config(family):
    config = family.schema.config()
    assert all(hasattr(config, field) for field in family.cache_fields)


def test_transform_repeats_and_leaves_the_patient_alone(
    family, experiment, synthetic_patients, synthetic_vocabulary
):
    patient = synthetic_patients["train"][0]
    before = (patient.time.copy(), patient.code.copy(), patient.value.copy())
    np.random.seed(1)
    first = family.transform(patient, experiment.model, synthetic_vocabulary)
    np.random.seed(2)
    second = family.transform(patient, experiment.model, synthetic_vocabulary)
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key])
        assert not isinstance(value, torch.Tensor)
    for old, new in zip(before, (patient.time, patient.code, patient.value), strict=True):
        np.testing.assert_array_equal(old, new)


def test_rows_are_scaled_as_the_vocabulary_says(
    family, experiment, synthetic_patients, synthetic_vocabulary
):
    standard = dataclasses.replace(synthetic_vocabulary, scaling="standard")
    patient = synthetic_patients["train"][0]
    robust, other = (
        family.transform(patient, experiment.model, vocabulary)
        for vocabulary in (synthetic_vocabulary, standard)
    )

    def same(a, b):
        return all(np.array_equal(a[key], b[key], equal_nan=True) for key in a)

    moved = dataclasses.replace(patient, value=patient.value + 1)
    if same(family.transform(moved, experiment.model, synthetic_vocabulary), robust):
        pytest.skip("its rows tell no values")
    assert not same(robust, other)


def test_transform_is_causal(family, experiment, synthetic_patients, synthetic_vocabulary):
    """What was said at t stays said: a row cut at t is a prefix of the whole, array by array."""
    for patient in synthetic_patients["train"][:3]:
        whole = family.transform(patient, experiment.model, synthetic_vocabulary)
        timed = patient.time[~patient.static]
        for share in (0.1, 0.5, 0.9):
            cut = patient.until(int(timed[int(share * len(timed))]))
            known = family.transform(cut, experiment.model, synthetic_vocabulary)
            for key, value in known.items():
                if np.ndim(value):
                    np.testing.assert_array_equal(value, whole[key][: len(value)], err_msg=key)


def test_collated_batches_are_flat_tensors_with_patients_last_or_first(family, experiment, rows):
    batch = family.collate(rows, experiment.model)
    assert all(isinstance(value, torch.Tensor) for value in batch.values())
    assert batch["subject_id"].tolist() == [int(row["subject_id"]) for row in rows]


def test_predictions_do_not_depend_on_padding_or_on_the_batch(family, experiment, rows, model):
    model.eval()
    with torch.no_grad():
        whole = family.predict(model, family.collate(rows, experiment.model))
        assert all(len(value) == len(rows) for value in whole.values())
        assert all(torch.isfinite(value).all() for value in whole.values())
        for i, row in enumerate(rows):
            alone = family.predict(model, family.collate([row], experiment.model))
            for key, value in alone.items():
                torch.testing.assert_close(value[0], whole[key][i], rtol=1e-4, atol=1e-4)


def test_predictions_repeat_and_differ_between_patients(family, experiment, rows, model):
    model.eval()
    batch = family.collate(rows, experiment.model)
    with torch.no_grad():
        first = family.predict(model, batch)
        torch.manual_seed(7)
        second = family.predict(model, batch)
    assert all(torch.equal(first[key], second[key]) for key in first)
    embedding = first["embedding"]
    assert embedding.ndim == 2
    assert (embedding[0] - embedding[1]).abs().max() > 1e-4


@pytest.mark.parametrize("training", [True, False])
def test_terms_are_finite_and_additive_over_a_batch_split(
    family, experiment, rows, model, training
):
    model.train(training)
    scheduled = scheduled_of(family)
    with torch.no_grad():
        whole = family.loss(model, family.collate(rows, experiment.model), scheduled, SEED)
        parts = [
            family.loss(model, family.collate(part, experiment.model), scheduled, SEED)
            for part in (rows[:2], rows[2:])
        ]
    for key, term in whole.items():
        assert torch.isfinite(term.sum)
        if key == "padding":  # which depends on what is batched together, and is only logged
            assert term.coef == 0
            continue
        assert float(term.count) == sum(float(part[key].count) for part in parts)
        total = torch.stack([part[key].sum for part in parts]).sum()
        torch.testing.assert_close(total, term.sum, rtol=1e-4, atol=1e-3)
        assert {part[key].coef for part in parts} == {term.coef}


def test_the_model_is_called_once_a_loss(family, experiment, rows, model):
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    batch = family.collate(rows, experiment.model)
    family.loss(model, batch, scheduled_of(family), SEED)
    assert len(calls) == 1


def test_every_trainable_parameter_gets_a_finite_gradient(family, experiment, rows, model):
    model.train()
    batch = family.collate(rows[:3], experiment.model)
    terms = family.loss(model, batch, scheduled_of(family), SEED)
    sum(term.coef * term.sum for term in terms.values()).backward()
    trainable = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, grad in trainable.items() if grad is None] == []
    assert [n for n, grad in trainable.items() if not torch.isfinite(grad).all()] == []
    assert [n for n, grad in trainable.items() if not grad.any()] == []


def test_no_layer_mixes_patients_or_ranks(model):
    assert not [m for m in model.modules() if "BatchNorm" in type(m).__name__]


def test_latents_and_reconstructions_name_their_patients(family, experiment, rows, model):
    batch = family.collate(rows, experiment.model)
    with torch.no_grad():
        if family.evaluation.latents:
            found = family.evaluation.latents(model.eval(), batch)
            assert found["mu"].shape == found["logvar"].shape
            assert len(found["patient"]) == len(found["mu"])
            assert set(found["patient"].tolist()) <= set(range(len(rows)))
        if family.evaluation.reconstruct:
            found = family.evaluation.reconstruct(model.eval(), batch)
            assert {len(value) for value in found.values()} == {len(found["value"])}
            wanted = {"patient", "set", "code", "value", "estimate", "carried", "hidden"}
            assert wanted <= set(found)


@pytest.fixture(scope="module")
def hundred_steps(tiny_experiment, make_loader, synthetic_vocabulary):
    """Train a family for 100 steps, once: what was lost on the way, and by tuning patients."""
    trained = {}

    def of(name):
        if name not in trained:
            family, experiment = get_family(name), tiny_experiment(name)
            torch.manual_seed(0)
            model = family.build(experiment.model, synthetic_vocabulary)
            loader, backend = make_loader(experiment), LocalBackend()
            measured = [validate(family, model, loader, backend, precision="float32")]
            curve = losses(family, model, loader, backend, experiment)
            measured.append(validate(family, model, loader, backend, precision="float32"))
            trained[name] = curve, [values["val/objective"] for values in measured]
        return trained[name]

    return of


def losses(family, model, loader, backend, experiment):
    """Train for 100 steps; return the mean terms so far at some of them."""
    optimizer, sums, curve = make_optimizer(model, experiment.train), Sums(backend), []
    take_step = OptimizerStep(experiment, family, model, optimizer, backend, sums)
    step = 0
    while step < 100:
        per_epoch = loader.steps_per_epoch
        for micro in loader.train_steps(step // per_epoch, step % per_epoch, 0, 1):
            seed_step(0, step, 0)
            set_lr(optimizer, learning_rate(step, 100, experiment.train))
            take_step(micro, scheduled_at(experiment, step, per_epoch), noise_seed(0, step))
            step += 1
            if step in (1, 2, 3) or step % 10 == 0:
                curve.append({"step": step, **sums.means("train")})
            if step == 100:
                break
    return curve


def test_100_steps_take_a_third_off_the_validation_objective(name, hundred_steps):
    _, (before, after) = hundred_steps(name)
    assert after < 2 / 3 * before


def test_a_checkpoint_round_trips_to_the_same_predictions(
    family, experiment, rows, model, synthetic_vocabulary, tmp_path
):
    save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
    loaded = load(tmp_path)
    assert loaded.experiment == experiment
    batch = family.collate(rows, experiment.model)
    with torch.no_grad():
        ours = family.predict(loaded.model, batch)
        theirs = family.predict(model.eval(), batch)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_losses_of_100_steps_are_those_stored(name, hundred_steps, pytestconfig):
    """A refactor that changes numbers is seen; `--update-golden` accepts the new ones."""
    curve, _ = hundred_steps(name)
    path = GOLDEN / f"{name}.json"
    if pytestconfig.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        text = json.dumps(curve)
        path.write_text(re.sub(r"(\{[^}]*\})", r"\n  \1", text)[:-1] + "\n]\n")
    assert path.is_file(), f"{path.name}: none yet; store the first ones with --update-golden"
    stored = json.loads(path.read_text())
    assert [row["step"] for row in curve] == [row["step"] for row in stored]
    for ours, theirs in zip(curve, stored, strict=True):
        assert ours.keys() == theirs.keys()
        tolerance, keys = tolerance_at(ours["step"], theirs)
        for key in keys:
            where = (ours["step"], key)
            assert ours[key] == pytest.approx(theirs[key], rel=tolerance, abs=1e-6), where


def tolerance_at(step, row):
    """How near a step's losses must be to those another CPU has stored, and which of them.

    Kernels differ in the last bit, 1e-7. In the first steps that is all, and it is there that a
    change of the arithmetic shows. A set's nearest tokens may then fall the other way, and single
    terms drift by up to 5 % with the same code, the objective by 1 %.
    """
    if step <= 3:
        return 1e-4, row
    return (0.02, row) if step <= 10 else (0.05, ["train/objective"])
