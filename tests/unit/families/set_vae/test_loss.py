import dataclasses
import math

import pytest
import torch

from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.loss import SOFT_NORM, chamfer, loss

SCHEDULED = {"beta": 0.2, "free_bits": 0.05}
SEED = 12345


def slow_chamfer(decoded, target, config):
    """One set without padding, in loops."""
    total = 0.0
    for weight, distance in (
        (config.direction_weight, lambda r, t: 1 - soft_cosine(r, t)),
        (config.magnitude_weight, lambda r, t: abs(norm(r) - norm(t))),
        (config.vector_weight, squared),
    ):
        forth = sum(min(distance(r, t) for t in target) for r in decoded)
        back = sum(min(distance(r, t) for r in decoded) for t in target)
        total += weight * (forth + back) / 2
    total += config.named_weight * sum(map(squared, decoded, target))
    if config.variance_weight:
        spread = torch.tensor(decoded).var(0, correction=0).mean()
        total -= config.variance_weight * float(spread) * len(decoded)
    return total


def norm(x):
    return math.sqrt(sum(a * a for a in x))


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def soft_cosine(a, b):
    """The cosine of a and b, each longer by an axis of its own of length SOFT_NORM."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (norm([*a, SOFT_NORM]) * norm([*b, SOFT_NORM]))


PARTS = ("direction", "magnitude", "vector", "named", "variance")


@pytest.fixture
def weighted(make_config):
    """A config of these parts of the reconstruction error alone: weighted(vector=1.0)."""

    def make(**parts):
        return make_config(**{f"{part}_weight": parts.get(part, 0.0) for part in PARTS})

    return make


@pytest.mark.parametrize(
    "parts",
    [
        {"direction": 1.0, "magnitude": 1.0, "vector": 3.0, "named": 3.0},
        {"direction": 2.0},
        {"magnitude": 1.5},
        {"vector": 1.0, "variance": 0.7},
        {"named": 0.8},
    ],
    ids=lambda parts: "+".join(parts),
)
def test_chamfer_equals_a_slow_reference(parts, weighted):
    config = weighted(**parts)
    torch.manual_seed(0)
    decoded, target = torch.randn(6, 5, 4), 2 * torch.randn(6, 5, 4)
    sizes = [5, 4, 3, 2, 1, 0]
    mask = torch.arange(5) < torch.tensor(sizes)[:, None]
    found = chamfer(decoded, target, mask, config)
    expected = [
        slow_chamfer(decoded[i, :n].tolist(), target[i, :n].tolist(), config) if n else 0.0
        for i, n in enumerate(sizes)
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_the_sign_of_a_value_matters(make_config, weighted):
    target = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    exact = weighted(magnitude=1.0, vector=3.0, named=3.0)
    assert float(chamfer(target, target, mask, exact)) < 1e-3
    assert float(chamfer(-target, target, mask, make_config())) > 1
    for part in ("direction", "vector", "named"):
        ours, mirrored = (
            float(chamfer(sign * target, target, mask, weighted(**{part: 1.0}))) for sign in (1, -1)
        )
        assert ours < 0.2
        assert mirrored > 1


def test_the_sign_of_a_value_near_the_mean_means_nothing(weighted):
    mask = torch.ones(1, 1, dtype=torch.bool)
    near = torch.tensor([[[SOFT_NORM / 100, 0.0]]])
    ours, mirrored = (chamfer(sign * near, near, mask, weighted(direction=1.0)) for sign in (1, -1))
    torch.testing.assert_close(ours, mirrored, rtol=1e-3, atol=0)


def test_vectors_under_each_others_names_cost_the_named_part_alone(weighted):
    torch.manual_seed(0)
    target = torch.randn(1, 3, 4)
    swapped, mask = target[:, [1, 0, 2]], torch.ones(1, 3, dtype=torch.bool)
    anonymous = weighted(direction=1.0, magnitude=1.0, vector=3.0, variance=0.5)
    ours, theirs = (chamfer(x, target, mask, anonymous) for x in (swapped, target))
    torch.testing.assert_close(ours, theirs)
    named = weighted(named=2.0)
    assert not chamfer(target, target, mask, named).any()
    expected = 2 * 2 * (target[:, 0] - target[:, 1]).square().sum(-1)
    torch.testing.assert_close(chamfer(swapped, target, mask, named), expected)


def test_a_zero_target_gives_finite_gradients(make_config):
    decoded = torch.zeros(1, 2, 3, requires_grad=True)
    chamfer(decoded, torch.zeros(1, 2, 3), torch.ones(1, 2).bool(), make_config()).sum().backward()
    assert torch.isfinite(decoded.grad).all()


def test_terms_are_sums_over_sets_that_have_tokens(make_model, make_row, make_config):
    model = make_model(clean=True)
    real = [make_row(1, [3, 4]), make_row(2, [5])]
    terms = loss(model, collate(real, make_config()), SCHEDULED, SEED)
    assert {name: term.coef for name, term in terms.items()} == {
        "recon": 1.0,
        "kl": 0.2,
        "kl_nats": 0.0,
        "padding": 0.0,
    }
    sets = [name for name in terms if name != "padding"]
    assert {float(terms[name].count) for name in sets} == {3.0}
    with_empty = loss(model, collate([*real, make_row(3, [0])], make_config()), SCHEDULED, SEED)
    for name in sets:
        assert float(with_empty[name].count) == 3.0
        torch.testing.assert_close(with_empty[name].sum, terms[name].sum)


def test_free_bits_raise_the_penalty_and_not_the_logged_divergence(make_model, batch):
    model = make_model(clean=True)
    with torch.no_grad():
        terms = {
            bits: loss(model, batch, {**SCHEDULED, "free_bits": bits}, SEED) for bits in (0.0, 0.5)
        }
    assert torch.equal(terms[0.0]["kl"].sum, terms[0.0]["kl_nats"].sum)
    assert torch.equal(terms[0.5]["kl_nats"].sum, terms[0.0]["kl_nats"].sum)
    sets, dims = 9, 2 * 4
    assert float(terms[0.5]["kl"].sum) >= 0.5 * sets * dims
    assert float(terms[0.0]["kl_nats"].sum) > 0


def test_without_perturbations_training_equals_evaluation(make_model, batch):
    clean = make_model(clean=True)
    on, off = (
        loss(clean.train(), batch, SCHEDULED, SEED),
        loss(clean.eval(), batch, SCHEDULED, SEED),
    )
    assert all(torch.equal(on[name].sum, off[name].sum) for name in on)


@pytest.mark.parametrize(
    "change",
    [
        {"p_stale": 0.9},
        {"p_live": 0.9},
        {"set_mae_ratio": 0.3},
        {"val_noise_std": 0.5},
        {"dir_noise_std": 0.5},
        {"decoder_noise": 0.5},
    ],
)
def test_each_perturbation_alone_changes_the_training_loss_only(make_model, batch, change):
    model = make_model(clean=True)
    model.config = dataclasses.replace(model.config, **change)
    on, off = (
        loss(model.train(), batch, SCHEDULED, SEED),
        loss(model.eval(), batch, SCHEDULED, SEED),
    )
    assert not torch.equal(on["recon"].sum, off["recon"].sum)


def test_the_loss_does_not_depend_on_the_global_generator(make_model, batch):
    model = make_model().train()
    torch.manual_seed(1)
    first = loss(model, batch, SCHEDULED, SEED)
    torch.manual_seed(2)
    assert torch.equal(loss(model, batch, SCHEDULED, SEED)["recon"].sum, first["recon"].sum)
    other = loss(model, batch, SCHEDULED, 99)
    assert not torch.equal(other["recon"].sum, first["recon"].sum)


def test_training_draws_sets_and_none_means_all(make_model, batch):
    counts = []
    for limit in (None, 2):
        terms = loss(make_model(sets_per_patient=limit), batch, SCHEDULED, SEED)
        counts.append(float(terms["recon"].count))
    assert counts == [9.0, 5.0]


def test_sets_are_padded_to_those_of_like_size(make_model, make_row, make_config):
    """The same loss and gradient in many chunks, with less padding."""
    batch = collate([make_row(i, [1, 2, 3, 12, 7]) for i in range(30)], make_config())
    found = []
    for tokens in (10**6, 60):
        model = make_model(chunk_tokens=tokens).train()
        terms = loss(model, batch, SCHEDULED, SEED)
        sum(term.coef * term.sum / term.count for term in terms.values()).backward()
        found.append((terms, {name: p.grad for name, p in model.named_parameters()}))
    (whole, ours), (cut, theirs) = found
    for name in ("recon", "kl", "kl_nats"):
        torch.testing.assert_close(cut[name].sum, whole[name].sum, rtol=1e-5, atol=1e-3)
    for name, gradient in ours.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    shares = [float(terms["padding"].sum / terms["padding"].count) for terms in (whole, cut)]
    assert shares[1] < 0.1 < shares[0]
    assert float(whole["padding"].count - whole["padding"].sum) == 30 * 25
