import math

import numpy as np
import pytest
import torch

from ehr_ray.events.mixing import splitmix64
from ehr_ray.nn.noise import combine, extended, forked_rng, normal, uniform

KEYS = torch.arange(200_000)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]).double())[0, 1])


def test_a_hash_is_that_of_the_published_finaliser():
    keys = np.array([0, 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    told = splitmix64(splitmix64(keys) + np.uint64(7))
    found = combine(torch.from_numpy(keys.view(np.int64)), 7)
    assert found.numpy().view(np.uint64).tolist() == told.tolist()
    draw = (told >> np.uint64(40)).astype(np.float64) / 2**24
    assert uniform(torch.from_numpy(keys.view(np.int64)), 7).tolist() == draw.tolist()


def test_what_is_drawn_for_several_purposes_at_once_is_what_each_draws():
    key = torch.arange(6).view(2, 3)
    both = uniform(key, torch.arange(3, 5).view(-1, 1, 1))
    assert torch.equal(both[0], uniform(key, 3))
    assert torch.equal(both[1], uniform(key, 4))


def test_a_hash_can_be_extended():
    keys = torch.arange(-3, 4)
    assert torch.equal(extended(combine(keys, 5), 6, keys), combine(keys, 5, 6, keys))
    assert torch.equal(keys, torch.arange(-3, 4))  # nothing of it is done in place


def test_uniform_has_the_moments_and_range_of_a_uniform():
    draw = uniform(KEYS, 7)
    assert draw.dtype == torch.float32
    assert 0 <= draw.min() < 1e-4
    assert 1 - 1e-4 < draw.max() < 1
    assert abs(float(draw.mean()) - 1 / 2) < 0.003
    assert abs(float(draw.var()) - 1 / 12) < 0.001
    counts = torch.histc(draw, 20, 0, 1) / len(draw)
    assert (counts - 0.05).abs().max() < 0.003


def test_normal_has_the_moments_and_tails_of_a_normal():
    draw = normal(torch.arange(2_000), 100).flatten().double()
    assert torch.isfinite(draw).all()
    assert abs(float(draw.mean())) < 0.01
    assert abs(float(draw.std()) - 1) < 0.01
    assert abs(float((draw**3).mean())) < 0.05
    assert abs(float((draw**4).mean()) - 3) < 0.1
    for limit in (1.0, 2.0, 3.0):
        expected = math.erfc(limit / math.sqrt(2))
        assert abs(float((draw.abs() > limit).double().mean()) - expected) < 0.003


def test_neighbouring_keys_positions_and_seeds_are_uncorrelated():
    draw = normal(torch.arange(10_000), 4)
    pairs = [(draw[1:, 0], draw[:-1, 0]), (draw[:, 0], draw[:, 1])]
    pairs.append((uniform(KEYS, 1), uniform(KEYS, 2)))
    pairs.append((uniform(KEYS, 1), uniform(KEYS + 1, 1)))
    for a, b in pairs:
        assert abs(correlation(a, b)) < 0.03


def test_a_draw_depends_on_its_keys_alone():
    whole = normal(KEYS[:100], 8)
    assert torch.equal(normal(KEYS[:100], 8), whole)
    assert torch.equal(normal(KEYS[40:60], 8), whole[40:60])
    assert torch.equal(normal(KEYS[:100].reshape(20, 5), 8), whole.reshape(20, 5, 8))
    assert torch.equal(normal(KEYS[:100], 3), whole[:, :3])
    torch.manual_seed(5)
    assert torch.equal(uniform(KEYS[:9], 3), uniform(KEYS[:9], 3))


def test_keys_broadcast_and_their_order_matters():
    a, b = torch.arange(5)[:, None], torch.arange(1, 4)
    assert combine(a, b).shape == (5, 3)
    assert int(combine(a, b)[2, 1]) == int(combine(torch.tensor(2), 2))
    assert int(combine(torch.tensor(1), 2)) != int(combine(torch.tensor(2), 1))
    assert int(combine(torch.tensor(1), 2)) != int(combine(torch.tensor(1), 2, 0))


@pytest.mark.parametrize("key", [0, -1, 2**62, -(2**63), 2**63 - 1])
def test_extreme_keys_give_finite_draws(key):
    key = torch.tensor([key])
    assert torch.isfinite(normal(key, 50)).all()
    assert 0 <= float(uniform(key, 2**48 - 1)) < 1


def test_hashes_do_not_collide_on_patients_sets_and_seeds():
    subject, index = torch.arange(10_000, 10_300)[:, None], torch.arange(100)
    found = torch.cat([combine(subject, index, seed).flatten() for seed in (1, 3, 5)])
    assert len(found.unique()) == len(found)


def test_a_forked_block_leaves_the_generators_of_its_device_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with forked_rng(torch.device("cpu")):
        torch.rand(9)
    assert torch.equal(torch.rand(2), expected)


def test_a_forked_block_asks_for_the_state_of_its_own_gpu_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.random, "fork_rng", lambda *a, **k: asked.append((a, k)))
    forked_rng(torch.device("cuda", 3))
    assert asked == [(([torch.device("cuda", 3)],), {"device_type": "cuda"})]
