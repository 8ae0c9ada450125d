import dataclasses

import pytest
import torch
from torch import nn

from ehr_ray.errors import ConfigError, InputError
from ehr_ray.family import Files, Learnable, Training
from ehr_ray.registry import get_family
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.checkpoint import Progress, save_state
from ehr_ray.train.report import Run, Watch
from ehr_ray.train.start import starting_model


@pytest.fixture
def start(tiny_experiment, make_loader, synthetic_vocabulary, tmp_path):
    """The starting model of a SetVAE, and what it told: start({field: value of the record})."""

    def run(fresh=True, changes=None, **record):
        experiment = tiny_experiment(changes=changes)
        family = dataclasses.replace(get_family("set_vae"), **record)
        told = []
        watch = Watch(on_lines=told.extend)
        loader = make_loader(experiment)
        parts = (experiment, family, synthetic_vocabulary, loader, LocalBackend(), tmp_path, watch)
        if not fresh:
            model = family.build(experiment.model, synthetic_vocabulary)
            save_state(tmp_path, model, {}, Progress(step=3))
        return starting_model(Run(*parts)), told

    return run


@pytest.mark.parametrize("fresh", [True, False])
def test_only_a_new_run_is_fitted_on_all_of_train_and_has_its_files_checked(start, fresh):
    seen = []
    training = Training(fit_buffers=lambda _model, batch: seen.append(len(batch["subject_id"])))
    files = Files(check=lambda _config: seen.append("checked"))
    start(fresh, training=training, files=files)
    assert len(seen) == (2 if fresh else 0)
    if fresh:
        assert seen[0] == "checked"
        assert seen[1] > 35  # of 60 patients seven tenths


@pytest.mark.parametrize("asked", [0, 5])
def test_a_family_says_on_how_many_rows_it_is_fitted(asked, start):
    seen = []
    start(
        training=Training(
            fit_buffers=lambda _model, batch: seen.extend(batch["subject_id"].tolist()),
            fit_rows=lambda _config: asked,
        )
    )
    assert len(set(seen)) == asked


def test_a_missing_file_is_told_before_the_model_is_built(start):
    def check(_config):
        raise InputError("table.csv: no such file")

    def build(*_):
        raise AssertionError("built")

    with pytest.raises(InputError, match=r"table\.csv"):
        start(files=Files(check=check), build=build)


def test_the_seed_alone_decides_on_the_first_weights(start):
    models = []
    for noise, seed in ((1, 5), (2, 5), (3, 6)):
        torch.manual_seed(noise)
        models.append(start(changes={"seed": seed})[0].state_dict())
    same = [all(torch.equal(models[0][n], other[n]) for n in other) for other in models[1:]]
    assert same == [True, False]


def test_few_rows_to_learn_from_are_told_and_none_is_an_error(start):
    def some(number):
        def rows(store):
            return torch.arange(len(store)).numpy() < number

        return Training(learnable=Learnable(rows, "a value", lambda _config: "give more"))

    _, told = start(training=some(2))
    assert [line.partition(":")[0] for line in told] == ["train", "tuning"]
    with pytest.raises(InputError, match=r"train split: none of .* has a value; give more"):
        start(training=some(0))


def test_a_model_without_transformer_blocks_does_not_checkpoint_their_activations(start):
    changes = {"train.activation_checkpointing": True}
    with pytest.raises(ConfigError, match=r"activation_checkpointing=true: this model has no"):
        start(changes=changes, build=lambda *_: nn.Linear(1, 1))
    assert start(changes=changes)[0].recomputed  # of a reader of sets, its chunks
    assert not start()[0].recomputed
