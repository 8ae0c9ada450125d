import torch

from ehr_ray.nn.pooling import AttentivePool


def test_only_real_states_are_pooled_and_the_query_learns_which():
    torch.manual_seed(0)
    pool, states = AttentivePool(8, 2), torch.randn(3, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] + [False] * 4])
    found = pool(states, mask)
    assert found.shape == (3, 8)
    torch.testing.assert_close(found[1:2], pool(states[1:2, :2], mask[1:2, :2]))
    changed = states.clone()
    changed[1:, 2:] += 7
    torch.testing.assert_close(pool(changed, mask)[1:], found[1:])
    found.sum().backward()
    assert pool.query.grad.abs().max() > 0


def test_the_order_of_states_does_not_matter():
    torch.manual_seed(0)
    pool, states = AttentivePool(8, 2), torch.randn(2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.bool)
    torch.testing.assert_close(pool(states, mask), pool(states.flip(1), mask))
