"""Models compute the same of packed tokens as of padded ones: every config whose family packs."""

from pathlib import Path

import pytest
import torch
from varlen import varlen_attn

from ehr_ray.config.yaml_files import override, read_yaml
from ehr_ray.experiment import parse
from ehr_ray.nn import packed
from ehr_ray.registry import get_family
from ehr_ray.train.backend import LocalBackend
from ehr_ray.train.task import LABEL, family_of, prepare_task_head

TINY = Path(__file__).parents[2] / "configs" / "tiny"
WINDOWS = {"model.max_length": 20, "model.truncation": "random"}
CASES = {
    "decoder": ("event_decoder", {"model.positions": ["rotary", "time"]}),
    "decoder in windows": ("event_decoder", WINDOWS),
    "decoder with a head of times": (
        "event_decoder",
        {"model.time_to_event_weight": 1.0, "model.time_to_event_codes": 5},
    ),
    "decoder with a head of values": ("event_decoder", {"model.future_value_weight": 1.0}),
    "hours with a head of values": ("visit_jepa", {"model.future_value_weight": 1.0}),
    "encoder": ("event_encoder", {"model.pooling": ["mean"]}),
    "encoder with cls in windows": ("event_encoder", {"model.pooling": ["cls", "max"], **WINDOWS}),
    "encoder that fills in": ("event_encoder", {"task": None, "model.head": "tied"}),
    "hours": ("visit_jepa", {"model.mask": "both"}),
    "hours with a regulariser": ("visit_jepa", {"model.regulariser": "vicreg"}),
    "hours that are their own targets": (
        "visit_jepa",
        {"model.target": "online", "model.regulariser": "sigreg"},
    ),
    "hours of a task": ("visit_jepa_finetune", {"model.hide_rows": 0.3}),
    "prior of sets": ("seqset_poe", {}),
}
SEED = 12345


def measured(case, patients, vocabulary):
    """Return the terms of a loss and the gradients, and what is predicted, dropout off."""
    name, changes = CASES[case]
    raw = override(read_yaml(TINY / f"{name}.yaml"), {"data.cohort": "none", **changes})
    experiment = parse(raw)
    config, family = experiment.model, family_of(experiment, 0.5)
    torch.manual_seed(0)
    model = family.build(config, vocabulary)
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    rows = [get_family(experiment.family).transform(p, config, vocabulary) for p in patients]
    batch = family.collate(rows, config)
    if family.training.fit_buffers:
        family.training.fit_buffers(model, batch)
    if experiment.task is not None:
        batch[LABEL] = (torch.arange(len(rows)) % 2).float()
        prepare_task_head(family, model, iter([batch]), LocalBackend(), fresh=True)
    scheduled = {n: s.at(10**6, 10) for n, s in family.schema.schedules.items()}
    terms = family.loss(model.train(), batch, scheduled, SEED)
    sum(t.coef * t.sum / t.count.clamp(min=1) for t in terms.values()).backward()
    found = {f"loss of {n}": t.sum.detach() for n, t in terms.items()}
    found |= {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        return found | family.predict(model.eval(), batch)


@pytest.mark.parametrize("case", CASES)
def test_packed_tokens_give_the_loss_gradients_and_predictions_of_padded_ones(
    case, synthetic_patients, synthetic_vocabulary, monkeypatch
):
    patients = synthetic_patients["train"][:5]
    patients = [*patients, patients[0].until(int(patients[0].time[len(patients[0].time) // 3]))]
    padded = measured(case, patients, synthetic_vocabulary)
    tokens = []

    def kernel(query, *given, **options):
        tokens.append(len(query))
        return varlen_attn(query, *given, **options)

    monkeypatch.setattr(packed, "kernel_for", lambda *_: kernel)
    found = measured(case, patients, synthetic_vocabulary)
    assert len(set(tokens)) >= 1, "nothing was packed"
    assert found.keys() == padded.keys()
    for name, value in padded.items():
        scale = max(1.0, float(value.abs().max()))
        torch.testing.assert_close(
            found[name] / scale,
            value / scale,
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m, n=name: f"{n}: {m}",
        )
