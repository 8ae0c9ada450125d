import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from varlen import everywhere, varlen_attn

from ehr_ray.nn import packed
from ehr_ray.nn.packed import kernel_for, packing
from ehr_ray.nn.transformer import Block, rotary_turns, through

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MASK = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]).bool()
GAPS = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0]]).bool()
REAL = [int(MASK.sum()), MASK.flatten().nonzero().squeeze(1)]


@pytest.fixture
def packs(monkeypatch):
    monkeypatch.setattr(packed, "kernel_for", everywhere)


def hidden():
    torch.manual_seed(1)
    return torch.randn(4, 4, 8, requires_grad=True)


@pytest.mark.parametrize("real", REAL, ids=["number", "places"])
def test_tokens_are_packed_line_by_line_and_come_back_to_their_places(packs, real):
    x = hidden()
    found = packing(x, 2, MASK, real)
    assert found.index.tolist() == REAL[1].tolist()
    assert found.starts.tolist() == [0, 3, 3, 4, 8]
    assert found.starts.dtype == torch.int32
    assert torch.equal(found.pack(x)[:, 0], x[MASK])
    back = found.unpack(found.pack(x))
    assert torch.equal(back, x * MASK.unsqueeze(-1))
    assert found.rows(torch.arange(4.0)[:, None]).flatten().tolist() == [0, 1, 2, 0, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("mask", "causal", "rotary"),
    [(MASK, False, False), (MASK, True, True), (MASK, False, True), (GAPS, False, False)],
    ids=["encoder", "causal rotary", "rotary", "gaps"],
)
@pytest.mark.parametrize("recomputed", [False, True])
def test_packed_blocks_equal_padded_ones(monkeypatch, mask, causal, rotary, recomputed):
    turns = rotary_turns(4, 4, CPU) if rotary else None

    def run():
        torch.manual_seed(0)
        blocks = nn.ModuleList(Block(8, 2, 0.0) for _ in range(3))
        for block in blocks:
            block.recomputed = recomputed
        x = hidden()
        out = through(blocks, x, mask, causal=causal, turns=turns, real=int(mask.sum()))
        real = out[mask]
        real.square().sum().backward()
        return [real, x.grad, *(p.grad for p in blocks.parameters())]

    padded = run()
    monkeypatch.setattr(packed, "kernel_for", everywhere)
    for one, other in zip(padded, run(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_packed_blocks_compute_real_tokens_alone(packs):
    seen = []
    blocks = nn.ModuleList([Block(8, 2, 0.0)])
    blocks[0].feed.register_forward_hook(lambda _m, given, _out: seen.append(given[0].shape))
    through(blocks, hidden(), MASK, real=8)
    assert seen == [(8, 1, 8)]


def test_without_a_kernel_or_their_number_or_any_tokens_are_padded(packs, monkeypatch):
    seen = []
    blocks = nn.ModuleList([Block(8, 2, 0.0)])
    blocks[0].feed.register_forward_hook(lambda _m, given, _out: seen.append(given[0].shape))
    through(blocks, hidden(), MASK)
    through(blocks, hidden(), torch.zeros_like(MASK), real=0)
    monkeypatch.setattr(packed, "kernel_for", lambda *_: None)
    through(blocks, hidden(), MASK, real=8)
    assert seen == [(4, 4, 8)] * 3


def test_a_kernel_is_for_16_bit_heads_on_gpus_that_have_flash_attention(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(packed, "torchs_own", lambda: varlen_attn)
    assert kernel_for(GPU, torch.bfloat16, 64) is varlen_attn
    assert kernel_for(GPU, torch.float32, 64) is None
    assert kernel_for(GPU, torch.bfloat16, 12) is None
    assert kernel_for(GPU, torch.bfloat16, 512) is None
    assert kernel_for(CPU, torch.bfloat16, 64) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert kernel_for(GPU, torch.bfloat16, 64) is None


def test_autocast_decides_what_type_heads_have(monkeypatch):
    asked = []
    monkeypatch.setattr(packed, "kernel_for", lambda *given: asked.append(given))
    packing(hidden(), 2, MASK, 8)
    with torch.autocast("cpu", torch.bfloat16):
        packing(hidden(), 2, MASK, 8)
    assert asked == [(CPU, torch.float32, 4), (CPU, torch.bfloat16, 4)]


def test_a_torch_without_the_function_leaves_tokens_padded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    packed.torchs_own.cache_clear()
    assert packed.torchs_own() is None
    packed.torchs_own.cache_clear()


def test_torchs_own_function_takes_what_it_is_given():
    """By shapes alone: no kernel of the CPU computes it."""
    kernel = packed.torchs_own()
    if kernel is None:
        pytest.skip("this torch has no attention over packed sequences")
    with FakeTensorMode():
        blocks = nn.ModuleList([Block(8, 2, 0.0)])
        x = torch.zeros(4, 4, 8, requires_grad=True)
        how = packed.Packed(torch.zeros(8).long(), torch.zeros(5).int(), (4, 4), kernel)
        how.unpack(blocks[0](how.pack(x), how, True, None)).sum().backward()
        assert x.grad.shape == (4, 4, 8)
        assert blocks[0].query_key_value.weight.grad.shape == (24, 8)
