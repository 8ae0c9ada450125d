"""What `init_from` copies means the same here: features are matched by name, wherever they lie.

The same patients under a vocabulary in another order must be told as the old model told them.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.errors import InputError
from ehr_ray.events.vocabulary import Vocabulary
from ehr_ray.experiment import parse
from ehr_ray.train.checkpoint import save_checkpoint
from ehr_ray.train.initialise import initialise
from ehr_ray.train.task import family_of

CONFIGS = Path(__file__).parents[2] / "configs" / "tiny"


def turned(vocabulary):
    """The same codes in reverse: as many, at other places."""
    parts = (vocabulary.count, vocabulary.mean, vocabulary.std, vocabulary.quantiles)
    turned_parts = (part[::-1].copy() for part in parts)
    return Vocabulary(
        vocabulary.codes[::-1], *turned_parts, vocabulary.descriptions[::-1], vocabulary.origin
    )


def batch_of(experiment, family, patients, vocabulary):
    rows = [family.transform(patient, experiment.model, vocabulary) for patient in patients]
    return family.collate(rows, experiment.model)


def told(family, model, batch):
    """What is compared: the logits of a task, whose statistics may lie elsewhere, or all."""
    with torch.no_grad():
        found = family.predict(model.eval(), batch)
    return {"logit": found["logit"]} if "logit" in found else found


@pytest.fixture
def make(synthetic_cohort, synthetic_vocabulary):
    def build(config, changes, vocabulary=synthetic_vocabulary, seed=0):
        raw = {"data.cohort": str(synthetic_cohort), **changes}
        experiment = parse(override(read_yaml(CONFIGS / f"{config}.yaml"), raw))
        family = family_of(experiment)
        torch.manual_seed(seed)
        return experiment, family, family.build(experiment.model, vocabulary)

    return build


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        ("set_vae", {}),
        ("seqset_poe", {}),
        ("seqset_finetune", {"model.embed": ["statistics", "sets"]}),
        ("seqset_finetune", {"model.embed": ["statistics"], "task.hidden": 0}),
        ("event_decoder", {"model.values": "merged"}),
        ("event_encoder", {"model.pooling": ["attention", "mean"]}),
        ("visit_jepa", {}),
        ("visit_jepa_finetune", {}),
        ("vitals_vae", {}),
        ("hcat", {}),
    ],
)
def test_features_that_lie_elsewhere_are_told_alike(
    config, changes, make, synthetic_vocabulary, synthetic_patients, tmp_path
):
    patients, other = synthetic_patients["train"][:3], turned(synthetic_vocabulary)
    moved = [
        dataclasses.replace(p, code=(len(other) - 1 - p.code).astype(p.code.dtype))
        for p in patients
    ]
    experiment, family, old = make(config, changes)
    save_checkpoint(tmp_path, old, experiment, synthetic_vocabulary)
    _, _, new = make(config, changes, other, seed=1)
    initialise(new, tmp_path, family, other, experiment.model)
    ours = told(family, old, batch_of(experiment, family, patients, synthetic_vocabulary))
    theirs = told(family, new, batch_of(experiment, family, moved, other))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["plain", "tied"])
def test_scores_of_phrases_go_with_their_phrases(head, make, synthetic_vocabulary, tmp_path):
    other = turned(synthetic_vocabulary)
    changes = {"model.head": head}
    experiment, family, old = make("event_decoder", changes)
    bias = "score.bias" if head == "plain" else "score_bias"
    texts = family.files.phrases(experiment.model, synthetic_vocabulary)
    with torch.no_grad():
        old.get_parameter(bias).copy_(torch.arange(len(texts)))
    save_checkpoint(tmp_path, old, experiment, synthetic_vocabulary)
    _, _, new = make("event_decoder", changes, other, seed=1)
    lines = initialise(new, tmp_path, family, other, experiment.model)
    there = [texts.index(text) for text in family.files.phrases(experiment.model, other)]
    assert new.get_parameter(bias).tolist() == there
    assert f"{bias}: {len(texts)} of {len(texts)} features copied, by name" in lines


@pytest.mark.parametrize("config", ["event_decoder", "visit_jepa"])
@pytest.mark.parametrize("head", ["time_to_event", "future_value"])
def test_heads_that_ask_of_codes_go_with_their_codes_and_keep_what_was_fitted_here(
    config, head, make, synthetic_vocabulary, tmp_path
):
    other, name = turned(synthetic_vocabulary), f"{head}.codes"
    changes = {f"model.{head}_weight": 1.0}
    experiment, family, old = make(config, changes)
    save_checkpoint(tmp_path, old, experiment, synthetic_vocabulary)
    _, _, new = make(config, changes, other, seed=1)
    fitted = {n: b.clone() for n, b in new.named_buffers() if n.startswith(f"{head}.")}
    lines = initialise(new, tmp_path, family, other, experiment.model)
    theirs, ours = (
        family.transfer.axes(experiment.model, vocabulary)[name].names
        for vocabulary in (synthetic_vocabulary, other)
    )
    assert ours != theirs
    assert sorted(ours) == sorted(theirs)
    place = [theirs.index(code) for code in ours]
    assert torch.equal(new.get_parameter(name), old.get_parameter(name)[place])
    assert f"{name}: {len(ours)} of {len(ours)} features copied, by name" in lines
    assert all(torch.equal(new.get_buffer(n), buffer) for n, buffer in fitted.items())
    kept = {line.removesuffix(": kept, made of this cohort") for line in lines}
    assert {n for n in new.state_dict() if n in fitted} <= kept


def test_values_are_told_of_the_features_they_were_learned_of(make, synthetic_vocabulary, tmp_path):
    other = turned(synthetic_vocabulary)
    experiment, family, old = make("visit_jepa", {})
    with torch.no_grad():
        old.values.bias.copy_(torch.arange(len(old.values.bias)))
    save_checkpoint(tmp_path, old, experiment, synthetic_vocabulary)
    _, _, new = make("visit_jepa", {}, other, seed=1)
    initialise(new, tmp_path, family, other, experiment.model)
    assert new.values.bias.tolist() == old.values.bias.tolist()[::-1]


@pytest.mark.parametrize(
    ("config", "theirs", "ours", "message"),
    [
        ("visit_jepa", {}, {"model.rows": "visits"}, "its model.rows is hours, here it is visits"),
        (
            "vitals_vae",
            {"model.vitals": [{"name": "HR", "codes": ["HR"], "low": 0, "high": 300}]},
            {"model.vitals": [{"name": "RR", "codes": ["RespRate"], "low": 0, "high": 90}]},
            r"its model.vitals is \['HR'\], here it is \['RR'\]",
        ),
    ],
)
def test_inputs_that_mean_other_things_are_refused(
    config, theirs, ours, message, make, synthetic_vocabulary, tmp_path
):
    experiment, _, old = make(config, theirs)
    save_checkpoint(tmp_path, old, experiment, synthetic_vocabulary)
    experiment, family, new = make(config, ours)
    with pytest.raises(InputError, match=message):
        initialise(new, tmp_path, family, synthetic_vocabulary, experiment.model)
