import math

import pytest
import torch

from ehr_ray.nn.attention import attend


def by_hand(query, key, value, allowed):
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(~allowed, -math.inf).softmax(-1) @ value


@pytest.fixture
def qkv():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3)]


def test_masked_keys_are_not_seen(qkv):
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool()[:, None, None, :]
    torch.testing.assert_close(attend(*qkv, mask), by_hand(*qkv, mask))


def test_causal_attention_sees_no_later_key(qkv):
    earlier = torch.ones(5, 5).tril().bool()
    torch.testing.assert_close(attend(*qkv, causal=True), by_hand(*qkv, earlier))


def test_on_cpu_it_runs_in_float32_whatever_autocast_says(qkv):
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(*(x.bfloat16() for x in qkv)).dtype == torch.float32
