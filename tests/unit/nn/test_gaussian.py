import torch
from torch.distributions import Normal, kl_divergence

from ehr_ray.nn.gaussian import free_bits, kl_standard, sample


def test_divergence_equals_that_of_torch():
    torch.manual_seed(0)
    mu, logvar = 3 * torch.randn(50, 7), 2 * torch.randn(50, 7)
    expected = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_standard(mu, logvar), expected, rtol=1e-5, atol=1e-5)
    assert kl_standard(torch.zeros(2), torch.zeros(2)).tolist() == [0.0, 0.0]


def test_divergence_is_computed_in_float32():
    assert kl_standard(torch.ones(2).bfloat16(), torch.ones(2).bfloat16()).dtype == torch.float32


def test_free_bits_give_each_dimension_a_floor_without_gradient():
    kl = torch.tensor([0.01, 0.3], requires_grad=True)
    clamped = free_bits(kl, 0.05)
    assert clamped.tolist() == [0.05000000074505806, 0.30000001192092896]
    clamped.sum().backward()
    assert kl.grad.tolist() == [0.0, 1.0]


def test_samples_have_the_mean_and_deviation_asked_for_and_repeat():
    key = torch.arange(20_000)
    mu, logvar = torch.full((20_000, 3), 2.0), torch.full((20_000, 3), -1.0)
    draw = sample(mu, logvar, key)
    torch.testing.assert_close(draw.mean(0), mu[0], atol=0.02, rtol=0)
    torch.testing.assert_close(draw.std(0), torch.exp(0.5 * logvar[0]), atol=0.02, rtol=0)
    assert torch.equal(sample(mu[5:9], logvar[5:9], key[5:9]), draw[5:9])


def test_samples_pass_gradients_to_mean_and_variance():
    mu, logvar = torch.zeros(4, 2, requires_grad=True), torch.zeros(4, 2, requires_grad=True)
    sample(mu, logvar, torch.arange(4)).sum().backward()
    assert (mu.grad == 1).all()
    assert (logvar.grad != 0).all()
