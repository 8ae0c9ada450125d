import pytest
import torch
from torch.nn import functional as F

from ehr_ray.families.hcat.loss import info_nce, loss, needs_pairs, outcome_loss
from ehr_ray.nn.noise import combine

SCHEDULED = {"beta": 1.0, "free_bits": 0.0}
SEED = 7


def test_unknown_labels_do_not_count(make_model, batch):
    model = make_model().eval()
    batch["label"][1] = -1
    terms = loss(model, batch, SCHEDULED, SEED)
    with torch.no_grad():
        logit = model.predict(model.tokens(batch))[0].logit[:, 0]
    known = [0, 2, 3]
    expected = F.binary_cross_entropy_with_logits(
        logit[known], batch["label"][known, 0], reduction="sum"
    )
    torch.testing.assert_close(terms["surv"].sum, expected)
    assert terms["surv"].count == 3
    assert terms["impute_mse"].coef == 0


def test_focal_turns_from_easy_rows(make_config):
    logit, label = torch.tensor([4.0, -4.0]), torch.tensor([1.0, 1.0])
    plain = outcome_loss(logit, label, make_config())
    focal = outcome_loss(logit, label, make_config(focal_gamma=2.0))
    assert focal[0] < 1e-3 * plain[0]
    assert focal[1] > 0.9 * plain[1]


def test_the_contrast_is_of_two_views_that_differ(make_model, batch):
    model = make_model(alpha_con=0.1, emb_noise=0.3).train()
    out = model(batch, 3)
    assert (out["first"] - out["second"]).abs().max() > 1e-3
    terms = loss(model, batch, SCHEDULED, SEED)
    assert terms["con"].count == 4
    sum(t.coef * t.sum for t in terms.values()).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, g in grads.items() if g is None or not g.any()] == []


def test_info_nce_by_hand():
    first = F.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), dim=-1)
    found = info_nce(first, first, temperature=1.0)
    # Each of four rows: its twin at 1, two strangers at 0.
    e = torch.e
    assert found.item() == pytest.approx(2 * -torch.log(torch.tensor(e / (e + 2))).item())
    assert info_nce(first, first.flip(0), 1.0) > found


def test_info_nce_is_the_same_under_bf16():
    views = F.normalize(torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = info_nce(*views, 0.1)
    assert mixed == info_nce(*views, 0.1)


def test_the_imputation_loss_is_of_hidden_tokens_and_can_be_learned(make_model, make_batch):
    model = make_model(mask_ratio=0.5, moddrop=0.0).train()
    optimizer = torch.optim.Adam(model.imputer.parameters(), lr=1e-2)
    patients, curve = make_batch(range(1, 17)), []
    for step in range(20):
        terms = loss(model, patients, {"beta": 0.01, "free_bits": 0.0}, 2 * step + 1)
        optimizer.zero_grad()
        (terms["impute"].sum / terms["impute"].count).backward()
        optimizer.step()
        curve.append(float(terms["impute_mse"].sum / terms["impute_mse"].count))
    assert 0 < float(terms["impute"].count) < 16 * 5
    assert sum(curve[-5:]) < 0.9 * sum(curve[:5])


def test_observed_tokens_are_reconstructed_by_their_squared_error(make_model, batch):
    model = make_model(mask_ratio=0.5).eval()
    tokens = model.tokens(batch)
    seen = tokens.only(
        ~model.hidden(tokens.present, combine(batch["subject_id"], SEED), SEED, drop=False)
    )
    filled = model.impute(seen, torch.zeros(4, dtype=torch.int64))
    error = (filled.recon - tokens.value / model.token_scale).square().mean(-1)
    found = loss(model, batch, SCHEDULED, SEED)["recon"]
    assert 4 < found.count == seen.present.sum() < tokens.present.sum()
    torch.testing.assert_close(found.sum, error[seen.present].sum())


def test_an_objective_is_the_sum_of_terms_by_their_weights(make_model, batch):
    alphas = {"surv": 2.0, "rec": 3.0, "con": 0.5, "kl": 0.7, "impute": 0.3}
    model = make_model(**{f"alpha_{name}": value for name, value in alphas.items()}).train()
    terms = loss(model, batch, SCHEDULED, SEED)
    assert {name: terms[name].coef for name in alphas} == alphas
    assert terms["recon"].coef == 0.3
    assert {n for n, term in terms.items() if not term.coef} == {"kl_nats", "impute_mse"}


def test_free_bits_are_a_floor_of_each_dimension(make_model, batch):
    model = make_model().eval()
    plain = loss(model, batch, SCHEDULED, SEED)
    floor = loss(model, batch, {**SCHEDULED, "free_bits": 9.0}, SEED)
    patients, latent = 4, model.config.size.latent
    assert floor["kl"].sum == 9.0 * patients * latent
    torch.testing.assert_close(floor["kl_nats"].sum, plain["kl_nats"].sum)
    torch.testing.assert_close(plain["kl"].sum, plain["kl_nats"].sum)


def test_a_contrast_needs_two_patients_in_a_micro_batch(make_config):
    assert needs_pairs(make_config(alpha_con=0.1)) == "model.alpha_con=0.1"
    assert needs_pairs(make_config()) is None
