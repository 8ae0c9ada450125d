import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ehr_ray.families.vitals_vae.quantise import Quantiser, code_warnings, perplexity


@pytest.fixture
def quantiser():
    torch.manual_seed(0)
    return Quantiser(16, 4)


def test_codes_are_the_nearest_directions(quantiser):
    x = torch.randn(5, 3, 4)
    chosen, codes, _, _ = quantiser(x)
    entries = F.normalize(quantiser.codebook.weight, dim=-1)
    torch.testing.assert_close(chosen, entries[codes])
    distance = torch.cdist(F.normalize(x, dim=-1), entries[None].expand(5, -1, -1))
    assert torch.equal(codes, distance.argmin(-1))


def test_the_gradient_passes_straight_through(quantiser):
    x = torch.randn(2, 3, 4, requires_grad=True)
    weight = torch.randn(2, 3, 4)
    chosen, *_ = quantiser(x)
    (ours,) = torch.autograd.grad((chosen * weight).sum(), x)
    (plain,) = torch.autograd.grad((F.normalize(x, dim=-1) * weight).sum(), x)
    torch.testing.assert_close(ours, plain)


def test_each_error_moves_its_own_side(quantiser):
    x = torch.randn(2, 3, 4, requires_grad=True)
    _, _, to_members, to_codes = quantiser(x)
    assert to_members.shape == to_codes.shape == (2,)
    to_members.sum().backward(retain_graph=True)
    assert x.grad is None
    assert quantiser.codebook.weight.grad.any()
    quantiser.codebook.weight.grad = None
    to_codes.sum().backward()
    assert x.grad.any()
    assert quantiser.codebook.weight.grad is None


def test_perplexity_counts_even_use():
    assert perplexity(np.arange(8).repeat(3).reshape(3, 8), 16) == (pytest.approx(8.0), 8)
    assert perplexity(np.zeros((9, 2), int), 16) == (pytest.approx(1.0), 1)


def test_a_codebook_that_is_hardly_used_is_said():
    healthy = {"code_perplexity": 20.0, "code_perplexity_share": 0.2, "codes_used": 40.0}
    poor = {"code_perplexity": 5.0, "code_perplexity_share": 0.05, "codes_used": 9.0}
    assert code_warnings([poor, healthy]) == code_warnings([]) == code_warnings([{"kl": 1.0}]) == []
    (line,) = code_warnings([healthy, poor])
    assert "perplexity 5.0 is 5.0% of its entries, 9 used" in line


def test_codes_are_the_same_under_bf16():
    torch.manual_seed(0)
    quantiser, x = Quantiser(512, 4), torch.randn(500, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        _, mixed, _, _ = quantiser(x)
    assert torch.equal(mixed, quantiser(x)[1])
