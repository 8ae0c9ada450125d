import numpy as np
import pytest
import torch

from ehr_ray.errors import InputError
from ehr_ray.evaluation.tasks.baselines import fit_own
from ehr_ray.evaluation.tasks.linear import fit_multinomial, fit_ridge
from ehr_ray.evaluation.tasks.probe import fit_probe
from ehr_ray.train.checksums import save_tensors
from ehr_ray.train.task_probe import TaskProbe, read_task_probes, save_task_probe


@pytest.fixture
def weights(tmp_path):
    save_tensors({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)).astype(np.float32)
    return x, rng.random(200) < 1 / (1 + np.exp(-2 * x[:, 0]))


def test_a_probe_says_the_same_after_it_was_stored(tmp_path, weights, rows):
    x, label = rows
    probe, _ = fit_probe(x[:100], label[:100], x[100:], label[100:])
    save_task_probe(tmp_path, TaskProbe("mortality", "embedding", "died", probe), weights)
    found = read_task_probes(tmp_path, weights)["mortality"]
    assert (found.task, found.output, found.positive) == ("mortality", "embedding", "died")
    outputs = {"embedding": torch.from_numpy(x), "logit": torch.zeros(200)}
    assert np.array_equal(found.answer(outputs), probe.predict(x))


@pytest.mark.parametrize("kind", ["regression", "classes"])
def test_a_probe_of_numbers_or_classes_says_the_same_after_it_was_stored(
    tmp_path, weights, rows, kind
):
    x, _ = rows
    if kind == "regression":
        label, names = 40 + 6 * x[:, 0], ()
        found = fit_ridge(x[:100], label[:100], x[100:], label[100:])
    else:
        label, names = np.digitize(x[:, 0], [-0.5, 0.5]), ("low", "middle", "high")
        found = fit_multinomial(x[:100], label[:100], x[100:], label[100:], 3)
    kept = TaskProbe("stay", "embedding", "", found.model, kind, names)
    save_task_probe(tmp_path, kept, weights)
    read = read_task_probes(tmp_path, weights)["stay"]
    assert (read.kind, read.classes) == (kind, names)
    told = read.answer({"embedding": torch.from_numpy(x)})
    assert np.array_equal(told, found.model.predict(x))
    right = told.argmax(1) == label if kind == "classes" else np.abs(told - label) < 1
    assert right.mean() > 0.9


def test_a_models_own_logit_is_calibrated_as_evaluate_calibrates_it(tmp_path, weights, rows):
    x, label = rows
    scorer = fit_own(x[:, 0], label)
    save_task_probe(tmp_path, TaskProbe("mortality", "logit", "", scorer.probe), weights)
    found = read_task_probes(tmp_path, weights)["mortality"]
    told = found.answer({"logit": torch.from_numpy(x[:, 0])})
    assert np.array_equal(told, scorer.predict(x[:, 0]))
    assert not np.allclose(told, scorer.predict_raw(x[:, 0]))


def test_a_probe_of_other_weights_and_a_damaged_one_are_refused(tmp_path, weights, rows):
    x, label = rows
    probe = TaskProbe("mortality", "logit", "", fit_own(x[:, 0], label).probe)
    save_task_probe(tmp_path, probe, weights)
    save_tensors({"w": torch.zeros(2)}, weights)
    with pytest.raises(InputError, match=r"mortality\.safetensors: fitted on other weights than"):
        read_task_probes(tmp_path, weights)
    path = tmp_path / "probes" / "mortality.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"mortality\.safetensors: damaged .* evaluate` again"):
        read_task_probes(tmp_path, weights)
