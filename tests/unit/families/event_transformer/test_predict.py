import pytest
import torch

from ehr_ray.families.event_transformer import FAMILY
from ehr_ray.families.event_transformer.predict import pooled


@pytest.mark.parametrize(
    ("how", "expected"), [("mean", 3.0), ("max", 5.0), ("last", 3.0), ("cls", 3.0)]
)
def test_pooling_reads_real_tokens_alone(how, expected, make_model):
    model = make_model(arch="decoder")
    tokens = torch.tensor([1.0, 5.0, 3.0, 99.0])[None, :, None].expand(1, 4, 16)
    mask = torch.tensor([[True, True, True, False]])
    assert pooled(model, tokens, tokens, mask, how)[0, 0] == expected


def test_attention_pooling_is_a_weighted_mean(make_model):
    model = make_model(pooling=("attention",))
    tokens, mask = torch.randn(2, 4, 16), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    weights = (tokens[0, :2] @ model.pool_query / 4).softmax(0)
    found = pooled(model, tokens, tokens, mask, "attention")
    torch.testing.assert_close(found[0], weights @ tokens[0, :2])


def test_windows_of_a_representation_are_random_only_with_a_seed(make_model, make_batch):
    model = make_model(max_length=4, truncation="random")
    batch = make_batch([50], model.config)
    read = FAMILY.represent.function
    assert torch.equal(read(model, batch, None), FAMILY.predict(model, batch)["embedding"])
    assert not torch.equal(read(model, batch, 1), read(model, batch, 2))
