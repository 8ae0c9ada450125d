import pytest
import torch

from ehr_ray.families.set_vae.attention import ISAB, MAB, Pooling, attend


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return torch.randn(3, 5, 8), torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0]]).bool()


def test_masked_keys_have_no_influence(tokens):
    x, mask = tokens
    other = torch.where(mask.unsqueeze(-1), x, torch.randn_like(x) * 50)
    for block in (ISAB(8, 2, 3), Pooling(8, 2)):
        ours, theirs = block(x, mask), block(other, mask)
        if ours.ndim == 3:
            ours, theirs = ours[mask], theirs[mask]
        torch.testing.assert_close(ours, theirs)
    block = MAB(8, 2)
    torch.testing.assert_close(block(x[:, :2], x, mask), block(x[:, :2], other, mask))


def test_an_induced_block_commutes_with_the_order_of_tokens_and_pooling_ignores_it(tokens):
    x, mask = tokens
    order = torch.randperm(5)
    block, pooling = ISAB(8, 2, 3), Pooling(8, 2)
    torch.testing.assert_close(block(x[:, order], mask[:, order]), block(x, mask)[:, order])
    torch.testing.assert_close(pooling(x[:, order], mask[:, order]), pooling(x, mask))


def test_attention_equals_its_definition(tokens):
    mask = tokens[1]
    q, k, v = (torch.randn(3, 2, 5, 4) for _ in range(3))
    score = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask[:, None, None], -torch.inf)
    torch.testing.assert_close(attend(q, k, v, mask[:, None, None]), score.softmax(-1) @ v)


def test_attention_on_cpu_stays_float32_under_autocast():
    x = torch.randn(1, 1, 3, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(x, x, x, None).dtype == torch.float32
