import math

import pytest
import torch

from ehr_ray.families.jepa.regularise import isotropy, variance_and_covariance


def normal(rows=400, width=8, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_variance_and_covariance_are_those_of_the_definition():
    x = normal(50) * torch.linspace(0.2, 2, 8)
    variance, covariance = variance_and_covariance(x)
    std = (x.var(0) + 1e-4).sqrt()
    assert variance == pytest.approx(float((1 - std).clamp(min=0).mean()), rel=1e-5)
    off = torch.cov(x.T)
    off.fill_diagonal_(0)
    assert covariance == pytest.approx(float(off.square().sum() / 8), rel=1e-4)
    assert variance_and_covariance(x[:1]) == (0, 0)


def test_isotropy_is_the_integral_of_epps_and_pulley():
    """On one point mass phi is 1 in every direction, and the integral is known."""
    t = torch.linspace(0, 3, 10_001)
    density = torch.exp(-t.square() / 2)
    apart = torch.trapezoid((1 - density).square() * density, t)
    assert isotropy(torch.zeros(5, 4), 1) == pytest.approx(5 * 2 * float(apart), rel=0.02)


def test_isotropy_is_least_for_independent_normal_numbers():
    x = normal()
    least = isotropy(x, 3)
    assert least < 2
    for worse in (0.1 * x, 3 * x, x + 1, x[:, :1].expand(-1, 8), x.sign() * math.sqrt(3)):
        assert isotropy(worse, 3) > 2 * least


def test_a_collapsed_batch_is_pushed_apart():
    x = (0.05 * normal(64)).requires_grad_()
    for _ in range(200):
        variance, covariance = variance_and_covariance(x)
        (gradient,) = torch.autograd.grad(variance + covariance / 25, x)
        x = (x - 5 * gradient).detach().requires_grad_()
    assert x.std(0).min() > 0.8
    y = (0.3 * normal(64)).requires_grad_()
    before = isotropy(y, 0)
    for step in range(100):
        (gradient,) = torch.autograd.grad(isotropy(y, step), y)
        y = (y - 0.1 * gradient).detach().requires_grad_()
    assert isotropy(y, 0) < 0.3 * before


def test_bf16_changes_nothing():
    x = normal(64)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = (*variance_and_covariance(x), isotropy(x, 3))
    assert mixed == (*variance_and_covariance(x), isotropy(x, 3))
