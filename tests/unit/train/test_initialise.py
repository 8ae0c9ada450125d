import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ehr_ray.config.task import TaskConfig
from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.family import Transfer
from ehr_ray.registry import get_family
from ehr_ray.train.checkpoint import save_checkpoint
from ehr_ray.train.initialise import by_part, initialise, named_by
from ehr_ray.train.task import with_task


@pytest.fixture
def experiment(tiny_experiment):
    return tiny_experiment()


@pytest.fixture
def family(experiment):
    return get_family(experiment.family)


class SplitPredictions(nn.Module):
    def __init__(self, shared=(10, 10), extra=None):
        super().__init__()
        self.shared = nn.Parameter(torch.randn(shared))
        self.register_buffer("scale", torch.randn(3))
        for name, size in (extra or {}).items():
            self.register_parameter(name, nn.Parameter(torch.randn(size)))


@pytest.fixture
def saved(tmp_path, experiment, synthetic_vocabulary):
    def save(model):
        save_checkpoint(tmp_path, model, experiment, synthetic_vocabulary)
        return tmp_path

    return save


def test_initialising_copies_what_fits_and_reports_every_tensor(
    saved, family, synthetic_vocabulary
):
    source = SplitPredictions(extra={"old": 5, "grown": 4})
    target = SplitPredictions(extra={"new": 5, "grown": 6})
    kept = target.grown.detach().clone()
    lines = initialise(target, saved(source), family, synthetic_vocabulary)
    assert set(lines) == {
        "shared: copied",
        "scale: copied",
        "new: new, initialised",
        "grown: initialised, [4] there, [6] here",
        "old: not used here",
    }
    assert len(lines) == 5
    assert torch.equal(target.shared, source.shared)
    assert torch.equal(target.scale, source.scale)
    assert torch.equal(target.grown, kept)


def test_initialising_from_an_unlike_checkpoint_is_refused(saved, family, synthetic_vocabulary):
    folder = saved(SplitPredictions(extra={"other": 200}))
    with pytest.raises(InputError, match="only 103 of 303 values fit"):
        initialise(SplitPredictions(extra={"unlike": 200}), folder, family, synthetic_vocabulary)
    with pytest.raises(InputError, match="values fit"):
        initialise(
            SplitPredictions(shared=(4, 4), extra={"x": 3}),
            saved(SplitPredictions(shared=(5, 5))),
            family,
            synthetic_vocabulary,
        )


def test_a_checkpoint_of_another_family_is_refused_whatever_fits(saved, synthetic_vocabulary):
    with pytest.raises(InputError, match=r"a checkpoint of set_vae, .* those of jepa"):
        initialise(
            SplitPredictions(), saved(SplitPredictions()), get_family("jepa"), synthetic_vocabulary
        )
    initialise(
        SplitPredictions(),
        saved(SplitPredictions()),
        get_family("seqset_poe"),
        synthetic_vocabulary,
    )


def test_a_model_without_the_large_head_of_a_checkpoint_is_started_by_it(
    saved, family, synthetic_vocabulary
):
    source, target = SplitPredictions(extra={"score": 5000}), SplitPredictions()
    lines = initialise(target, saved(source), family, synthetic_vocabulary)
    assert torch.equal(target.shared, source.shared)
    assert "score: not used here" in lines


def test_a_pretrained_model_starts_the_base_of_a_task_model(
    saved, family, experiment, synthetic_vocabulary
):
    source = family.build(experiment.model, synthetic_vocabulary)
    under = with_task(family, TaskConfig(name="outcome"))
    target = under.build(experiment.model, synthetic_vocabulary)
    lines = initialise(target, saved(source), under, synthetic_vocabulary)
    for name, tensor in target.base.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name
    assert {line for line in lines if "copied" not in line} == {
        f"{name}: new, initialised" for name in target.state_dict() if name.startswith("heads")
    } | {f"{name}: kept, made of this cohort" for name in ("center", "scale")}


def test_a_task_model_gives_its_base_back(saved, family, experiment, synthetic_vocabulary):
    under = with_task(family, TaskConfig(name="outcome"))
    source = under.build(experiment.model, synthetic_vocabulary)
    target = family.build(experiment.model, synthetic_vocabulary)
    initialise(target, saved(source), family, synthetic_vocabulary)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, source.base.state_dict()[name]), name


def vocabulary_of(*codes):
    size = len(codes)
    return Vocabulary(
        codes, np.ones(size, np.int64), np.zeros(size, np.float32), np.ones(size, np.float32)
    )


def test_rows_of_codes_are_matched_by_code_not_by_place(tmp_path, family, experiment):
    there, here = vocabulary_of("A", "B", "C"), vocabulary_of("B", "C", "Z")
    source = family.build(experiment.model, there)
    source.directions.copy_(torch.arange(3.0)[:, None].expand_as(source.directions))
    save_checkpoint(tmp_path, source, experiment, there)
    target = family.build(experiment.model, here)
    unknown = target.directions[2].clone()
    lines = initialise(target, tmp_path, family, here)
    assert target.directions[0].unique().tolist() == [1.0]
    assert target.directions[1].unique().tolist() == [2.0]
    assert torch.equal(target.directions[2], unknown)
    assert "directions: rows of 2 of 3 codes copied" in lines


def test_a_checkpoint_of_otherwise_scaled_values_is_refused(saved, family, synthetic_vocabulary):
    other = dataclasses.replace(synthetic_vocabulary, scaling="standard")
    folder = saved(SplitPredictions())
    with pytest.raises(InputError, match=r"robust values.*set data\.scale=robust"):
        initialise(SplitPredictions(), folder, family, other)


def test_fates_are_told_by_part_of_the_model():
    lines = [
        "a.b.0.weight: copied",
        "a.b.0.bias: copied",
        "a.c.weight: new, initialised",
        "d: copied",
    ]
    assert by_part(lines) == [
        "a.b: 2 tensors copied",
        "a.c: 1 tensor new, initialised",
        "d: 1 tensor copied",
    ]


def test_tensors_made_of_the_cohort_are_neither_copied_nor_counted(
    family, saved, synthetic_vocabulary
):
    mine = dataclasses.replace(family, transfer=Transfer(data_buffers=("scale",)))
    old, new = SplitPredictions(), SplitPredictions()
    before = new.scale.clone()
    lines = initialise(new, saved(old), mine, synthetic_vocabulary)
    assert torch.equal(new.shared, old.shared)
    assert torch.equal(new.scale, before)
    assert "scale: kept, made of this cohort" in lines
    stranger = SplitPredictions(shared=(4, 4))  # only the buffer would fit
    with pytest.raises(InputError, match="only 0 of 100 values fit"):
        initialise(stranger, saved(old), mine, synthetic_vocabulary)


@pytest.mark.parametrize("ending", ["scale", "base.scale"])
def test_a_tensor_is_named_by_the_end_of_its_dotted_name(ending):
    names = ["scale", "base.scale", "heads.base.scale", "rescale", "base.rescale", "scale.base"]
    found = [name for name in names if named_by(name, [ending])]
    assert found == names[ending == "base.scale" : 3]


def test_buffers_of_a_part_are_left_alone_by_their_dotted_name(family, saved, synthetic_vocabulary):
    mine = dataclasses.replace(family, transfer=Transfer(data_buffers=("0.scale",)))
    old, new = nn.Sequential(SplitPredictions()), nn.Sequential(SplitPredictions())
    before = new[0].scale.clone()
    lines = initialise(new, saved(old), mine, synthetic_vocabulary)
    assert torch.equal(new[0].shared, old[0].shared)
    assert torch.equal(new[0].scale, before)
    assert "0.scale: kept, made of this cohort" in lines
