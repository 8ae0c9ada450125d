import math

import pytest
import torch

from ehr_ray.errors import ConfigError
from ehr_ray.families.event_transformer.family import FAMILY
from ehr_ray.families.event_transformer.loss import summary

SCHEDULED = {}
SEED = 0


def test_every_event_but_the_first_is_predicted_and_padding_is_not(make_model, make_batch):
    model = make_model(arch="decoder")
    terms = FAMILY.loss(model, make_batch([9, 4, 1, 0], model.config), SCHEDULED, SEED)
    assert float(terms["event"].count) == 8 + 3
    start = float(terms["event"].sum.detach() / terms["event"].count)
    assert abs(start - math.log(len(model.table))) < 1.0


def test_padding_is_logged_as_the_share_of_what_is_computed(make_model, make_batch):
    model = make_model(arch="decoder", max_length=8, truncation="random")
    term = FAMILY.loss(model, make_batch([20, 5, 3], model.config), SCHEDULED, SEED)["padding"]
    assert (float(term.sum), float(term.count), term.coef) == (3 + 5, 3 * 8, 0)


def test_value_and_time_heads_are_asked_what_comes_next(make_model, make_batch):
    model = make_model(arch="decoder", next_value_weight=0.5, next_time_weight=0.1)
    batch = make_batch([9, 4], model.config)
    out = model(batch, 0)
    asked = batch["mask"][:, 1:]
    assert torch.equal(out["target_value"], batch["value"][:, 1:][asked])
    gaps = torch.expm1(out["target_time"])
    torch.testing.assert_close(
        gaps, torch.tensor([0, *[60.0] * 7, 0, 60, 60]), rtol=1e-4, atol=1e-3
    )
    terms = FAMILY.loss(model, batch, SCHEDULED, SEED)
    assert (terms["value"].coef, terms["time"].coef) == (0.5, 0.1)
    assert float(terms["value"].count) == float(out["valued"].sum()) < 11
    error = (out["value"] - out["target_value"]).square()[out["valued"]].sum()
    torch.testing.assert_close(terms["value"].sum, error)


def test_every_parameter_learns_whatever_the_heads(make_model, make_batch):
    for arch in ("encoder", "decoder"):
        changes = {"next_time_weight": 0.1} if arch == "decoder" else {}
        pooling = ("cls", "attention")
        model = make_model(
            arch=arch, head="tied", next_value_weight=1.0, pooling=pooling, **changes
        )
        terms = FAMILY.loss(model, make_batch([30, 20], model.config), SCHEDULED, SEED)
        sum(t.coef * t.sum for t in terms.values()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_without_a_weight_there_is_no_head_of_the_next_event_and_no_perplexity(
    make_model, make_batch
):
    """The others are asked what they would be beside it."""
    others = ("next_value", "next_time", "time_to_event", "future_value")
    weights = {f"{name}_weight": 0.5 for name in others}
    for head in ("plain", "tied"):
        shape = {"arch": "decoder", "head": head, "pooling": ("attention",), **weights}
        model = make_model(**shape, next_event_weight=0.0)
        terms = FAMILY.loss(model, make_batch([30, 20], model.config), SCHEDULED, SEED)
        assert "event" not in terms
        sum(t.coef * t.sum for t in terms.values()).backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        whole = make_model(**shape)
        whole.load_state_dict(model.state_dict(), strict=False)
        beside = FAMILY.loss(whole, make_batch([30, 20], whole.config), SCHEDULED, SEED)
        assert set(beside) - set(terms) == {"event", "accuracy"}
        for name, term in terms.items():
            torch.testing.assert_close(term.sum, beside[name].sum)
    for weight in ("time_to_event_weight", "future_value_weight"):
        alone = make_model(
            arch="decoder", pooling=("attention",), next_event_weight=0.0, **{weight: 1.0}
        )
        terms = FAMILY.loss(alone, make_batch([30, 20], alone.config), SCHEDULED, SEED)
        sum(t.coef * t.sum for t in terms.values()).backward()
        assert [n for n, p in alone.named_parameters() if p.grad is None] == []


def test_phrases_keep_their_embeddings_in_training(make_model, make_batch):
    model = make_model(arch="decoder", head="tied")
    table, project = model.table.clone(), model.project.weight.detach().clone()
    terms = FAMILY.loss(model, make_batch([9, 4], model.config), SCHEDULED, SEED)
    terms["event"].sum.backward()
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert torch.equal(model.table, table)
    assert not torch.equal(model.project.weight, project)


def test_a_model_without_head_cannot_be_pretrained(make_model, make_batch):
    model = make_model(head="none")
    with pytest.raises(ConfigError, match=r"model\.head=none"):
        FAMILY.loss(model, make_batch([5], model.config), SCHEDULED, SEED)


def test_perplexity_is_of_the_mean():
    assert summary({"event": math.log(7.0), "value": 2.0}) == pytest.approx({"perplexity": 7.0})
    assert summary({"task": 1.0}) == {}


def test_times_to_events_are_told_as_what_they_gain_over_the_rates_of_train():
    means = {"event": 0.0, "time_to_event": 0.7, "time_to_event_baseline": 1.0}
    assert summary(means)["time_to_event_gain"] == pytest.approx(0.3)
