import pytest
import torch

from ehr_ray.families.event_transformer.family import FAMILY
from ehr_ray.families.event_transformer.predict import pooled


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", 3.0), ("max", 5.0), ("last", 3.0), ("cls", 3.0)]
)
def test_pooling_reads_real_tokens_alone(how, expected, make_model):
    model = make_model(arch="decoder")
    tokens = torch.tensor([1.0, 5.0, 3.0, 99.0])[None, :, None].expand(1, 4, 16)
    mask = torch.tensor([[True, True, True, False]])
    assert pooled(model, tokens, tokens, {"mask": mask}, how)[0, 0] == expected


def test_each_query_of_attention_pooling_gives_a_weighted_mean_of_real_tokens(
    make_model, make_batch
):
    model = make_model(pooling=("mean", "attention"), pool_queries=3)
    batch = make_batch([5, 9], model.config)
    length = int(batch["mask"][0].sum())
    tokens = torch.randn(*batch["mask"].shape, 16)
    share = model.pool_scores(batch)[0, :length].softmax(0)
    found = pooled(model, tokens, tokens, batch, "attention")
    torch.testing.assert_close(found[0], (share.T @ tokens[0, :length]).flatten())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pooled(model, tokens, tokens, batch, "attention"), found)
    assert FAMILY.represent.width(model) == 16 + 3 * 16


def test_windows_of_a_representation_are_random_only_with_a_seed(make_model, make_batch):
    model = make_model(max_length=4, truncation="random")
    batch = make_batch([50], model.config)
    read = FAMILY.represent.function
    assert torch.equal(read(model, batch, None), FAMILY.predict(model, batch)["embedding"])
    assert not torch.equal(read(model, batch, 1), read(model, batch, 2))


TIMES = {
    "arch": "decoder",
    "time_to_event_weight": 1.0,
    "time_to_event_codes": ("RASH", "HR"),
    "time_to_event_bins": (6.0, 24.0),
}


def test_hazards_are_of_the_last_token_and_of_the_first_day(make_model, make_batch):
    model = make_model(**TIMES).eval()
    batch = make_batch([40, 10, 0], model.config)
    with torch.no_grad():
        found = FAMILY.evaluation.outputs["hazards"](model, batch)
        assert found["patient"].tolist() == [0, 0, 1]
        assert found["day"].tolist() == [0, 1, 0]
        assert found["minute"].tolist() == [38 * 60, 24 * 60, 8 * 60]
        assert found["hazard"].shape == (3, 3 * 2)
        early = {k: v[:1, :26] if v.ndim > 1 else v[:1] for k, v in batch.items()}
        alone = FAMILY.evaluation.outputs["hazards"](model, early)
    torch.testing.assert_close(alone["hazard"][0], found["hazard"][1], rtol=1e-4, atol=1e-5)
    assert FAMILY.evaluation.outputs["hazards"](make_model(arch="decoder"), batch) == {}
