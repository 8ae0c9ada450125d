import pytest
import torch

from ehr_ray.families.set_vae import chunking
from ehr_ray.families.set_vae.sequence.loss import loss

SCHEDULED = {"beta": 0.2, "free_bits": 0.0, "capacity": 0.0}
SEED = 12345


@pytest.fixture
def model(make_model):
    return make_model(clean=True)


def terms_of(model, batch, seed=SEED, **scheduled):
    with torch.no_grad():
        return loss(model, batch, {**SCHEDULED, **scheduled}, seed)


def test_terms_are_sums_over_sets_with_tokens(model, batch, make_row, made_batch, rows):
    terms = terms_of(model, batch)
    coefficients = {name: term.coef for name, term in terms.items()}
    assert coefficients == {
        "recon": 1.0,
        "kl": 0.2,
        "kl_nats": 0.0,
        "kl_standard_nats": 0.0,
        "padding": 0.0,
    }
    assert {float(terms[name].count) for name in terms if name != "padding"} == {9.0}
    with torch.no_grad():
        out = model(batch, SEED)
    torch.testing.assert_close(terms["recon"].sum, out["recon"].sum())
    torch.testing.assert_close(terms["kl"].sum, out["kl"].sum())
    with_empty = terms_of(model, made_batch(*rows, make_row(3, [0])))
    torch.testing.assert_close(with_empty["recon"].sum, terms["recon"].sum, rtol=1e-5, atol=1e-4)
    assert float(with_empty["recon"].count) == 9


def test_beta_weighs_the_divergence_and_nothing_else(model, batch):
    for beta in (0.0, 0.7):
        terms = terms_of(model, batch, beta=beta)
        assert (terms["recon"].coef, terms["kl"].coef) == (1.0, beta)


def test_free_bits_raise_each_dimension_and_not_the_log(model, batch):
    raw, raised = (terms_of(model, batch, free_bits=bits) for bits in (0.0, 0.5))
    assert torch.equal(raw["kl"].sum, raw["kl_nats"].sum)
    assert torch.equal(raised["kl_nats"].sum, raw["kl_nats"].sum)
    with torch.no_grad():
        kl = model(batch, SEED)["kl"]
    assert (kl < 0.5).any()
    torch.testing.assert_close(raised["kl"].sum, kl.clamp(min=0.5).sum())


def test_capacity_is_what_each_set_is_held_to(model, batch):
    with torch.no_grad():
        kl = model(batch, SEED)["kl"].sum(1)
    middle = float(kl.median())
    assert kl.min() < middle < kl.max()
    terms = terms_of(model, batch, capacity=middle)
    torch.testing.assert_close(terms["kl"].sum, (kl - middle).abs().sum())
    torch.testing.assert_close(terms["kl_nats"].sum, kl.sum())


def test_above_its_capacity_the_divergence_is_still_pushed_down(model, batch):
    directions = []
    for capacity in (1e-3, 1e3):
        model.zero_grad()
        loss(model, batch, {**SCHEDULED, "capacity": capacity}, SEED)["kl"].sum.backward()
        directions.append(model.prior.expect.out.bias.grad.clone())
    assert directions[0].any()
    torch.testing.assert_close(directions[0], -directions[1])


def test_the_divergence_from_the_standard_normal_is_logged(model, batch):
    beliefs = model.beliefs(batch)
    normal = torch.distributions.Normal(0.0, 1.0)
    ours = torch.distributions.Normal(beliefs.post_mu, (beliefs.post_logvar / 2).exp())
    expected = torch.distributions.kl_divergence(ours, normal).sum()
    torch.testing.assert_close(terms_of(model, batch)["kl_standard_nats"].sum, expected)


def test_padding_is_the_share_of_tokens_computed_in_vain(make_model, long_row, rows, made_batch):
    batch = made_batch(*rows, long_row)
    model = make_model(chunk_tokens=50)
    found = terms_of(model, batch)["padding"]
    sizes = batch["mask"].sum(1)
    pieces = chunking.by_size(batch, 50).indices
    padded = sum(len(piece) * int(sizes[piece].max()) for piece in pieces)
    assert float(found.count) == padded
    assert float(found.sum) == padded - int(sizes.sum())
    assert 0 < found.sum / found.count < 0.3


def test_a_step_is_a_function_of_its_seed_alone(make_model, batch):
    model = make_model(decode_sets=2).train()
    torch.manual_seed(1)
    first = terms_of(model, batch)
    torch.manual_seed(2)
    again = terms_of(model, batch)
    other = terms_of(model, batch, seed=99)
    assert torch.equal(first["recon"].sum, again["recon"].sum)
    assert torch.equal(first["kl"].sum, again["kl"].sum)
    assert not torch.equal(first["recon"].sum, other["recon"].sum)
    assert not torch.equal(first["kl"].sum, other["kl"].sum)
