import pytest
import torch

from ehr_ray.families.vitals_vae.config import SCALES
from ehr_ray.families.vitals_vae.loss import gaussian, loss
from ehr_ray.nn.gaussian import kl_standard

BRANCHES = tuple(scale.name for scale in SCALES)

SCHEDULED = {"beta": 0.7, "free_bits": 0.3}
SEED = 11
ARCHS = ("conv", "lstm", "vq")


def objective(terms):
    return sum(t.coef * t.sum / t.count for t in terms.values())


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("purpose", ["elbo", "published"])
def test_terms_add_up_over_patients(arch, purpose, make_model, make_batch):
    model = make_model(arch=arch, objective=purpose)
    with torch.no_grad():
        whole = loss(model, make_batch([3, 5, 8]), SCHEDULED, SEED)
        parts = [loss(model, make_batch(ids), SCHEDULED, SEED) for ids in ([3], [5, 8])]
    for name, term in whole.items():
        total = sum(part[name].sum for part in parts)
        torch.testing.assert_close(total, term.sum, rtol=1e-4, atol=1e-4)
        assert float(term.count) == sum(float(part[name].count) for part in parts)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_parameter_is_trained(arch, make_model, batch):
    model = make_model(arch=arch)
    objective(loss(model, batch, SCHEDULED, SEED)).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def untrained_branches(model, batch):
    """Branches with a parameter that the branches' own term gives no gradient."""
    model.zero_grad()
    term = loss(model, batch, SCHEDULED, SEED).get("branches")
    if term is None or not term.coef or not term.sum.requires_grad:
        return list(BRANCHES)
    term.sum.backward()
    named = {name: model.decoder.branches[name].parameters() for name in BRANCHES}
    return [n for n, ps in named.items() if any(p.grad is None or not p.grad.any() for p in ps)]


def test_the_branch_term_alone_trains_every_branch_and_no_mixture(make_model, batch):
    """Fails when branch outputs are not passed to the loss, as in the published trainer."""
    model = make_model()
    assert untrained_branches(model, batch) == []
    assert model.decoder.mix.weight.grad is None
    assert model.log_noise.grad is None


def test_of_patients_decoded_from_their_means_the_decoder_alone_learns(make_model, batch):
    model = make_model()
    terms = loss(model, batch, {**SCHEDULED, "mean_share": 1.0}, SEED)
    objective(terms).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.decoder.mix.parameters())
    for part in (model.encoder, model.head):
        assert not any(p.grad.any() for p in part.parameters())
    assert terms["kl_nats"].sum == loss(model, batch, SCHEDULED, SEED)["kl_nats"].sum


def test_the_share_decoded_from_means_is_of_patients(make_model, make_batch):
    model = make_model(hide=0.0).eval()
    batch = make_batch(range(1, 41))
    with torch.no_grad():
        out = model(batch, 1, 0.5)
        mean = model.encode(batch, out["hidden"]).whole_mean(model.config.evidence)
        curve, _ = model.decode(mean)
    chosen = out["from_mean"]
    assert 10 < chosen.sum() < 30
    torch.testing.assert_close(out["merged"][chosen], curve[chosen])
    assert (out["merged"] != curve).flatten(1).any(1)[~chosen].all()


@pytest.mark.parametrize("branch", BRANCHES)
def test_a_branch_that_is_cut_off_is_found(branch, make_model, batch):
    model = make_model()
    model.decoder.branches[branch].register_forward_hook(lambda _m, _x, y: y.detach())
    assert untrained_branches(model, batch) == [branch]


def test_branches_that_weigh_nothing_are_found(make_model, batch):
    assert untrained_branches(make_model(branch_weight=0.0), batch) == list(BRANCHES)


def test_each_branch_counts_alike(make_model, batch):
    model = make_model(hide=0.0).eval()
    with torch.no_grad():
        out = model(batch, SEED)
        term = loss(model, batch, SCHEDULED, SEED)["branches"]
        each = [
            gaussian((b - batch["value"]).square(), out["log_noise"], batch["observed"])
            for b in out["branches"]
        ]
    torch.testing.assert_close(term.sum, torch.stack(each).mean())


def test_the_likelihood_is_a_gaussians(make_batch):
    batch = make_batch([2], share=0.5)
    squared, noise = torch.rand(1, 96, 7), torch.linspace(-1, 0.5, 7)
    normal = torch.distributions.Normal(0.0, noise.exp())
    exact = -normal.log_prob(squared.sqrt())[batch["observed"]].sum()
    cells = batch["observed"].sum()
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi)) * cells
    torch.testing.assert_close(gaussian(squared, noise, batch["observed"]) + constant, exact)


def test_cells_that_are_not_observed_have_no_say(make_model, batch):
    model = make_model().eval()
    changed = {**batch, "value": batch["value"] + 3 * ~batch["observed"]}
    with torch.no_grad():
        ours, theirs = loss(model, batch, SCHEDULED, SEED), loss(model, changed, SCHEDULED, SEED)
    assert {n: float(t.sum) for n, t in ours.items()} == {
        n: float(t.sum) for n, t in theirs.items()
    }


def test_divergence_is_logged_raw_beside_the_penalty(make_model, batch):
    model = make_model().eval()
    with torch.no_grad():
        terms = loss(model, batch, SCHEDULED, SEED)
        out = model(batch, SEED)
    kl = kl_standard(out["mu"], out["logvar"])
    torch.testing.assert_close(terms["kl_nats"].sum, kl.sum())
    torch.testing.assert_close(terms["kl"].sum, kl.clamp(min=0.3).sum())
    assert (terms["kl"].coef, terms["kl_nats"].coef, terms["kl_per_dim"].coef) == (0.7, 0.0, 0.0)
    assert float(terms["kl_per_dim"].count) == 6 * float(terms["kl_nats"].count)


def test_the_published_penalty_cannot_tell_health_from_collapse(make_model, batch):
    """Below its free bits it is 0 whether the latent is used or not; the raw number is not."""
    model = make_model(objective="published")
    terms = loss(model, batch, {**SCHEDULED, "free_bits": 2.0}, SEED)
    assert float(terms["kl"].sum.detach()) == 0
    assert float(terms["kl_nats"].sum) > 0


def test_hidden_cells_are_scored_apart(make_model, batch):
    terms = loss(make_model().eval(), batch, SCHEDULED, SEED)
    cells = float(batch["observed"].sum())
    assert 0 < float(terms["mse_hidden"].count) < 0.2 * cells
    assert float(terms["mse"].count) + float(terms["mse_hidden"].count) == cells
    published = loss(make_model(objective="published").eval(), batch, SCHEDULED, SEED)
    assert "mse_hidden" not in published
    assert float(published["mse"].count) == cells
