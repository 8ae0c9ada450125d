import math

import pytest
import torch
from torch import nn

from ehr_ray.nn.transformer import (
    LONGEST,
    SHORTEST,
    Block,
    rotary_turns,
    rotated,
    rounded,
    sinusoids,
    through,
    time_waves,
    wave_angles,
)

CPU = torch.device("cpu")


@pytest.fixture
def block():
    torch.manual_seed(0)
    return Block(8, 2, 0.0)


def hidden(length=5):
    torch.manual_seed(1)
    return torch.randn(2, length, 8, requires_grad=True)


def reach(value, source):
    (gradient,) = torch.autograd.grad(value.sum(), source, retain_graph=True)
    return gradient.abs().sum((0, 2)) > 0


def test_a_causal_block_sees_itself_and_what_came_before(block):
    x = hidden()
    out = block(x, None, True, None)
    for t in range(5):
        assert reach(out[:, t], x).tolist() == [s <= t for s in range(5)]
    assert reach(block(x, None, False, None)[:, 0], x).all()


def test_masked_tokens_are_not_seen(block):
    x, mask = hidden(), torch.tensor([[True] * 3 + [False] * 2] * 2)
    out = block(x, mask, False, None)
    assert reach(out[:, :3], x).tolist() == [True] * 3 + [False] * 2
    torch.testing.assert_close(out[:, :3], block(x[:, :3], None, False, None))


def test_a_block_is_pre_norm_attention_and_feed_forward_on_a_residual_stream(block):
    """Against the written-out formula of Vaswani et al. 2017, one head at a time."""
    x = hidden()
    normed = block.norm_attention(x)
    q, k, v = block.query_key_value(normed).chunk(3, -1)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        score = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        heads.append(score.softmax(-1) @ v[..., part])
    expected = x + block.out(torch.cat(heads, -1))
    expected = expected + block.feed(block.norm_feed(expected))
    torch.testing.assert_close(block(x, None, False, None), expected)


def test_turned_keys_and_queries_know_their_distance_alone():
    torch.manual_seed(0)
    turns = rotary_turns(12, 8, CPU)
    assert turns.shape == (12, 4)
    query, key = (torch.randn(8).expand(1, 1, 12, 8) for _ in range(2))
    score = (rotated(query, turns) @ rotated(key, turns).transpose(-1, -2))[0, 0]
    for distance in range(-5, 6):
        along = score.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), rtol=1e-4, atol=1e-4)
    assert score[0, :6].unique().numel() == 6
    torch.testing.assert_close(rotated(query, turns)[:, :, 0], query[:, :, 0])
    norms = rotated(query, turns).norm(dim=-1)
    torch.testing.assert_close(norms, query.norm(dim=-1))


def test_turns_make_a_block_sensitive_to_order(block):
    x, turns = hidden(), rotary_turns(5, 4, CPU)
    order = torch.tensor([2, 0, 1, 4, 3])
    plain = block(x, None, False, None)
    torch.testing.assert_close(block(x[:, order], None, False, None), plain[:, order])
    turned = block(x, None, False, turns)
    assert (block(x[:, order], None, False, turns) - turned[:, order]).abs().max() > 1e-3


def test_sinusoids_equal_the_formula():
    found = sinusoids(7, 6, CPU)
    for position in range(7):
        for i in range(3):
            angle = position / 10_000 ** (2 * i / 6)
            expected = torch.tensor([math.sin(angle), math.cos(angle)])
            torch.testing.assert_close(found[position, 2 * i : 2 * i + 2], expected)


def test_time_waves_have_periods_from_ten_minutes_to_ten_years():
    minute = torch.tensor([[0.0, 3.0, 61.0]])
    found = time_waves(minute, 8)
    assert found.shape == (1, 3, 8)
    for i in range(4):
        period = SHORTEST * (LONGEST / SHORTEST) ** (i / 3)
        for j, at in enumerate(minute[0].tolist()):
            wave = [found[0, j, i], found[0, j, 4 + i]]
            angle = 2 * math.pi * at / period
            expected = torch.tensor([math.sin(angle), math.cos(angle)])
            torch.testing.assert_close(torch.stack(wave), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        time_waves(torch.tensor([0.0, SHORTEST]), 2),
        torch.tensor([[0.0, 1.0]] * 2),
        atol=1e-5,
        rtol=0,
    )


def test_dropout_is_off_in_evaluation():
    torch.manual_seed(0)
    block, x = Block(8, 2, 0.5), hidden()
    assert not torch.equal(block(x, None, False, None), block(x, None, False, None))
    block.eval()
    assert torch.equal(block(x, None, False, None), block(x, None, False, None))


def test_waves_of_time_are_right_over_a_life_of_minutes():
    """float32 minutes are two apart after 32 years: waves of ten minutes would be noise."""
    life = [0.0, 3.0, 2.0**24 + 1, 100 * 525_960.0 + 1, -60 * 525_960.0 - 3]
    minute = torch.tensor(life, dtype=torch.float64)
    period = torch.tensor([10.0, 1440.0, 525_600.0])
    exact = (2 * torch.pi * (minute[:, None] / period.double() % 1)).sin()
    assert torch.allclose(wave_angles(minute, period).sin().double(), exact, atol=0.01)
    small = minute[:2].float()
    assert torch.equal(wave_angles(small, period), 2 * torch.pi * small[:, None] / period)


def test_a_block_that_is_recomputed_has_the_same_gradient_and_keeps_less():
    def run(recomputed):
        torch.manual_seed(0)
        block = Block(8, 2, 0.5)
        block.recomputed = recomputed
        kept = []

        def keep(tensor):
            kept.append(tensor.numel())
            return tensor

        x, mask = hidden(), torch.tensor([[True] * 3 + [False] * 2] * 2)
        torch.manual_seed(2)  # of dropout
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = block(x, mask, True, rotary_turns(5, 4, CPU))
        held = sum(kept)
        torch.manual_seed(3)
        out.square().sum().backward()
        return [out, x.grad, *(p.grad for p in block.parameters())], held

    (plain, held), (again, less) = run(False), run(True)
    for first, second in zip(plain, again, strict=True):
        assert torch.equal(first, second)
    assert less < held / 5


def test_a_recomputed_block_computes_once_without_a_gradient(block):
    block.recomputed, x = True, hidden()
    with torch.no_grad():
        out = block(x, None, True, None)
    assert torch.equal(out, block(x, None, True, None))
    assert not out.requires_grad


def test_lengths_are_rounded_up_to_few():
    few = [rounded(length) for length in range(1, 513)]
    assert all(0 <= up - length < max(8, length / 4) for length, up in enumerate(few, 1))
    assert sorted(set(few)) == [
        *range(8, 65, 8), *range(80, 129, 16), *range(160, 257, 32), *range(320, 513, 64)
    ]  # fmt: skip


@pytest.mark.parametrize(("causal", "rotary"), [(False, False), (True, True), (False, True)])
def test_blocks_that_are_compiled_see_lengths_rounded_up(causal, rotary):
    torch.manual_seed(0)
    blocks, seen = nn.ModuleList(Block(8, 2, 0.0) for _ in range(2)), []
    x, mask = hidden(), torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    turns = rotary_turns(5, 4, CPU) if rotary else None
    plain = through(blocks, x, mask, causal=causal, turns=turns)

    def step(block, given, *how):
        seen.append(tuple(given.shape))
        return Block.computed(block, given, *how)

    for block in blocks:
        block.compiled = step
    found = through(blocks, x, mask, causal=causal, turns=turns, real=8)
    torch.testing.assert_close(found[mask], plain[mask])
    assert found.shape == x.shape
    with torch.no_grad():
        assert torch.equal(through(blocks, x, mask, causal=causal, turns=turns), plain)
    assert seen == [(2, 8, 8)] * 2


def test_a_patient_without_tokens_is_no_number_to_nobody():
    torch.manual_seed(0)
    blocks = nn.ModuleList([Block(8, 2, 0.0)])
    mask = torch.tensor([[False] * 5, [True] * 5])
    assert torch.isfinite(through(blocks, hidden(), mask)).all()
