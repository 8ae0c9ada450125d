import pytest
import torch
from torch.distributions import Normal, kl_divergence

from ehr_ray.families.set_vae.sequence.experts import divergence, product


def gaussians(count=20):
    torch.manual_seed(0)
    mu_q, mu_p = torch.randn(2, count, dtype=torch.float64) * 2
    logvar_q, logvar_p = torch.randn(2, count, dtype=torch.float64).clamp(-2, 2)
    return mu_q, logvar_q, mu_p, logvar_p


def normal(mu, logvar):
    return Normal(mu, (logvar / 2).exp())


@pytest.mark.parametrize("gate", [0.1, 1.0, 3.0])
def test_product_is_the_normalised_product_of_densities(gate):
    x = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    for mu_q, logvar_q, mu_p, logvar_p in zip(*gaussians(4), strict=True):
        log = gate * normal(mu_q, logvar_q).log_prob(x) + normal(mu_p, logvar_p).log_prob(x)
        weight = torch.softmax(log, 0)
        mean = (weight * x).sum()
        variance = (weight * (x - mean).square()).sum()
        mu, logvar = product(mu_q, logvar_q, mu_p, logvar_p, gate)
        torch.testing.assert_close(mu, mean)
        torch.testing.assert_close(logvar.exp(), variance, rtol=1e-5, atol=1e-8)


def test_at_its_extremes_the_gate_leaves_one_expert():
    mu_q, logvar_q, mu_p, logvar_p = gaussians()
    closed = product(mu_q, logvar_q, mu_p, logvar_p, 0.0)
    torch.testing.assert_close(closed, (mu_p, logvar_p))
    mu, logvar = product(mu_q, logvar_q, mu_p, logvar_p, 1e9)
    torch.testing.assert_close(mu, mu_q)
    torch.testing.assert_close(logvar + torch.tensor(1e9, dtype=torch.float64).log(), logvar_q)


def test_a_gate_by_set_scales_its_own_set_alone():
    found = gaussians(2)
    gate = torch.tensor([1.0, 0.0])
    mu, logvar = product(*found, gate)
    naive = product(*found)
    assert (mu[0], logvar[0]) == (naive[0][0], naive[1][0])
    assert (mu[1], logvar[1]) == (found[2][1], found[3][1])


def test_a_product_is_surer_than_each_expert_and_between_them():
    mu_q, logvar_q, mu_p, logvar_p = gaussians()
    mu, logvar = product(mu_q, logvar_q, mu_p, logvar_p)
    assert (logvar < torch.minimum(logvar_q, logvar_p)).all()
    assert (torch.minimum(mu_q, mu_p) <= mu).all()
    assert (mu <= torch.maximum(mu_q, mu_p)).all()
    swapped = product(mu_p, logvar_p, mu_q, logvar_q)
    torch.testing.assert_close((mu, logvar), swapped)


def test_divergence_equals_the_reference_and_is_zero_between_equals():
    mu_q, logvar_q, mu_p, logvar_p = gaussians()
    expected = kl_divergence(normal(mu_q, logvar_q), normal(mu_p, logvar_p))
    found = divergence(mu_q, logvar_q, mu_p, logvar_p)
    torch.testing.assert_close(found, expected)
    assert (found > 0).all()
    assert not divergence(mu_q, logvar_q, mu_q, logvar_q).any()


def test_gradients_stay_finite_at_the_ends_of_the_ranges():
    for low, high in ((-10.0, 4.0), (10.0, -8.0)):
        values = [torch.tensor(v, requires_grad=True) for v in (3.0, low, -3.0, high)]
        mu, logvar = product(*values)
        divergence(mu, logvar, values[2], values[3]).backward()
        assert all(torch.isfinite(value.grad) for value in values)
