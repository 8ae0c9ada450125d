import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ehr_ray.families.set_vae.sequence import experts
from ehr_ray.families.set_vae.sequence.prior import (
    Clock,
    Expectation,
    GRUPrior,
    TransformerPrior,
)

D, S = 6, 5


@pytest.fixture(params=[TransformerPrior, GRUPrior], ids=["transformer", "gru"])
def prior(request, make_config):
    return build(request.param, make_config())


def build(kind, config):
    torch.manual_seed(0)
    prior = kind(config, D)
    with torch.no_grad():
        prior.expect.out.weight.mul_(100)
    return prior


def naive(mu_q, logvar_q, mu_p, logvar_p, gap):
    return experts.product(mu_q, logvar_q, mu_p, logvar_p)


def stay(steps=S, patients=2):
    torch.manual_seed(1)
    mu, logvar = torch.randn(2, patients, steps, D)
    gap = torch.rand(patients, steps + 1) * 100
    return mu.requires_grad_(), logvar.requires_grad_(), gap, gap.cumsum(1)


def reach(value, source):
    """The size of the gradient at each step of the source, summed over patients and dimensions."""
    (gradient,) = torch.autograd.grad(value.sum(), source, retain_graph=True)
    return gradient.abs().sum((0, 2)).tolist()


@pytest.mark.parametrize("what", ["mu", "logvar"])
def test_what_is_expected_of_a_set_comes_from_the_sets_before_alone(prior, what):
    mu, logvar, gap, minute = stay()
    found = getattr(prior(mu, logvar, gap, minute, naive), what)
    for t in range(1, S):
        sizes = reach(found[:, t], mu)
        assert sizes[t:] == [0.0] * (S - t)
        assert min(sizes[:t]) > 1e-6
    assert not found[0, 0].isnan().any()
    sizes = torch.autograd.grad(found[:, 0].sum(), mu, retain_graph=True, allow_unused=True)[0]
    assert sizes is None or not sizes.any()


def test_the_posterior_sees_its_own_set_and_none_after(prior):
    mu, logvar, gap, minute = stay()
    found = prior(mu, logvar, gap, minute, naive)
    for t in range(S):
        for posterior in (found.posterior_mu, found.posterior_logvar):
            for source in (mu, logvar):
                assert not any(reach(posterior[:, t], source)[t + 1 :])
        assert reach(found.posterior_mu[:, t], mu)[t] > 1e-3
        assert reach(found.posterior_mu[:, t], logvar)[t] > 1e-3


def test_the_last_state_has_seen_every_set_and_the_others_none_to_come(prior):
    mu, logvar, gap, minute = stay()
    state = prior(mu, logvar, gap, minute, naive).state
    assert state.shape[1] == S + 1
    assert min(reach(state[:, S], mu)) > 1e-6
    for t in range(1, S):
        assert not any(reach(state[:, t], mu)[t:])


@pytest.mark.parametrize("which", ["gap", "minute"])
def test_an_expectation_knows_when_its_set_is_and_not_when_later_ones_are(prior, which):
    mu, logvar, gap, minute = stay()
    before = prior(mu, logvar, gap, minute, naive)
    moved = {"gap": gap.clone(), "minute": minute.clone()}
    moved[which][:, 2] += 600
    after = prior(mu, logvar, moved["gap"], moved["minute"], naive)
    for name in ("mu", "logvar"):
        old, new = getattr(before, name), getattr(after, name)
        assert torch.equal(old[:, :2], new[:, :2])
        assert (old[:, 2] - new[:, 2]).abs().max() > 1e-4


class Count(TorchDispatchMode):
    """The number of tensor operations."""

    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


def test_the_transformer_takes_all_steps_at_once(make_config):
    prior = build(TransformerPrior, make_config())
    counts, calls = [], []
    prior.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    for steps in (3, 60):
        with torch.no_grad(), Count() as count:
            prior(*stay(steps), naive)
        counts.append(count.operations)
    assert counts[0] == counts[1] > 20
    assert len(calls) == 2


def test_the_gru_is_fed_the_product_and_not_the_set_alone(make_config):
    prior = build(GRUPrior, make_config())
    mu, logvar, gap, minute = stay()
    shut = lambda *given: (given[2], given[3])  # noqa: E731 - the prior goes on as it expected
    found = prior(mu, logvar, gap, minute, shut)
    torch.testing.assert_close(found.posterior_mu, found.mu)
    assert not found.mu.requires_grad or not any(
        g.any()
        for g in torch.autograd.grad(found.mu.sum(), (mu, logvar), allow_unused=True)
        if g is not None
    )


def test_the_state_of_the_gru_is_not_rounded_by_autocast(make_config):
    prior, told = build(GRUPrior, make_config()), []
    prior.cell.register_forward_hook(lambda _, given, state: told.append((*given, state)))
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            prior(*stay(), naive)
        assert len(told) == S
        for inputs, before, state in told:
            assert torch.equal(torch.nn.GRUCell.forward(prior.cell, inputs, before), state)


def test_steps_behind_a_stay_change_nothing(prior):
    mu, logvar, gap, minute = stay()
    whole = prior(mu, logvar, gap, minute, naive)
    cut = prior(mu[:, :3], logvar[:, :3], gap[:, :4], minute[:, :4], naive)
    for name in ("mu", "logvar", "posterior_mu", "posterior_logvar"):
        torch.testing.assert_close(getattr(whole, name)[:, :3], getattr(cut, name))
    torch.testing.assert_close(whole.state[:, :4], cut.state)


def test_the_clock_tells_gaps_by_bucket_and_hours_and_days_apart():
    torch.manual_seed(0)
    clock = Clock(16, 8)
    edges = clock.edges
    assert len(edges) == 15
    torch.testing.assert_close(edges[[0, -1]], torch.tensor([0.5, 1440.0]))
    ratios = edges.log1p().diff()
    torch.testing.assert_close(ratios, ratios[:1].expand(14))
    now = torch.zeros(1)
    assert torch.equal(clock(torch.tensor([2000.0]), now), clock(torch.tensor([9e5]), now))
    assert torch.equal(clock(torch.tensor([0.0]), now), clock(torch.tensor([0.4]), now))
    gaps = torch.tensor([0.0, 1.0, 5.0, 60.0, 600.0, 1440.0])
    told = clock(gaps, torch.zeros(6))
    assert torch.pdist(told).min() > 1e-3
    minutes = torch.tensor([0.0, 30.0, 60.0, 1440.0, 2880.0, 525_600.0])
    told = clock(torch.zeros(6), minutes)
    assert torch.pdist(told).min() > 1e-3


def test_an_expectation_starts_at_half_of_the_last_latent_with_unit_variance():
    torch.manual_seed(0)
    expect = Expectation(8, D)
    last = torch.randn(3, D)
    mu, logvar = expect(torch.randn(3, 8), last)
    torch.testing.assert_close(mu, last / 2, rtol=0.1, atol=0.05)
    assert logvar.abs().max() < 0.05
