import pytest
import torch
from torch.nn import functional as F

from ehr_ray.families.vitals_vae.quantise import Quantiser


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
