import pytest
import torch

from ehr_ray.families.set_vae.predict import pooled
from ehr_ray.families.set_vae.sequence import experts
from ehr_ray.families.set_vae.sequence.predict import (
    latents,
    predict,
    reconstruct,
    represent,
    represent_width,
    set_errors,
)
from ehr_ray.families.set_vae.sequence.statistics import statistics

KINDS = pytest.mark.parametrize("prior", ["transformer", "gru"])


@pytest.fixture
def model(make_model):
    return make_model().eval()


def cut(row, sets):
    """The row as it was after its first sets."""
    tokens = int(row["set_size"][:sets].sum())
    ragged = ("code", "value", "age", "carried")
    short = {name: row[name][:sets] for name in ("set_size", "minute")}
    return {**row, **{name: row[name][:tokens] for name in ragged}, **short}


def test_prediction_is_deterministic(make_model, batch):
    model = make_model(eval_decoder_noise=0.3).eval()
    with torch.no_grad():
        first = predict(model, batch)
        torch.manual_seed(9)
        second = predict(model, batch)
    assert all(torch.equal(first[name], second[name]) for name in first)


@KINDS
def test_what_is_believed_after_a_set_is_what_a_stay_cut_there_tells(
    make_model, make_row, made_batch, prior
):
    model, row = make_model(prior=prior).eval(), make_row(8, [7, 1, 3, 12, 5])
    with torch.no_grad():
        whole = model.beliefs(made_batch(row))
        for sets in (1, 3, 4):
            known = model.beliefs(made_batch(cut(row, sets)))
            for name in ("p_mu", "p_logvar", "post_mu", "post_logvar"):
                ours, theirs = getattr(known, name), getattr(whole, name)[:sets]
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@KINDS
@pytest.mark.parametrize("embed", [("sets", "history"), ("sets",), ("history", "statistics")])
def test_an_embedding_joins_the_parts_that_are_asked_for(make_model, batch, embed, prior):
    model = make_model(embed=embed, prior=prior).eval()
    with torch.no_grad():
        found = predict(model, batch)
        beliefs = model.beliefs(batch)
    wanted = []
    if "sets" in embed:
        wanted += [pooled(beliefs.post_mu, batch["num_sets"], how) for how in model.config.pool]
    if "history" in embed:
        wanted.append(beliefs.state)
    if "statistics" in embed:
        wanted.append(statistics(batch, len(model.sets.directions)))
    torch.testing.assert_close(found["embedding"], torch.cat(wanted, 1))
    assert found["embedding"].shape == (3, represent_width(model))


def test_the_divergence_told_is_the_mean_over_a_stay(model, batch):
    with torch.no_grad():
        beliefs, found = model.beliefs(batch), predict(model, batch)["kl_nats"]
    kl = experts.divergence(beliefs.post_mu, beliefs.post_logvar, beliefs.p_mu, beliefs.p_logvar)
    expected = [part.sum(1).mean() for part in kl.split(batch["num_sets"].tolist())]
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_representation_is_the_embedding_and_trains_what_it_reads(make_model, batch):
    model = make_model(perturb_task=True)
    with torch.no_grad():
        torch.testing.assert_close(
            represent(model, batch, None), predict(model, batch)["embedding"]
        )
        shaken = [represent(model, batch, seed) for seed in (1, 1, 2)]
    assert torch.equal(shaken[0], shaken[1])
    assert (shaken[0] - shaken[2]).abs().max() > 1e-3
    represent(model, batch, 1).square().sum().backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    decoder = ("sets.query", "sets.unfold", "sets.read", "sets.project", "sets.out")
    assert unused
    assert all(name.startswith(decoder) for name in unused)
    rest = {n: p.grad for n, p in model.named_parameters() if not n.startswith(decoder)}
    assert [name for name, gradient in rest.items() if not gradient.any()] == []


def test_a_task_is_trained_on_the_inputs_it_is_used_on(make_model, batch):
    model = make_model().train()
    with torch.no_grad():
        assert torch.equal(represent(model, batch, 1), represent(model, batch, None))


def test_latents_are_products_of_sets_with_tokens(model, make_row, made_batch):
    batch = made_batch(make_row(1, [3, 4]), make_row(2, [0]), make_row(3, [2]))
    with torch.no_grad():
        found, beliefs = latents(model, batch), model.beliefs(batch)
    assert found["patient"].tolist() == [0, 0, 2]
    assert torch.equal(found["mu"], beliefs.post_mu[[0, 1, 3]])
    assert torch.equal(found["logvar"], beliefs.post_logvar[[0, 1, 3]])


def test_a_hidden_value_does_not_reach_its_own_estimate(model, batch):
    with torch.no_grad():
        found = reconstruct(model, batch)
        hidden = found["hidden"]
        assert hidden.any()
        changed = {**batch, "value": batch["value"].clone()}
        flat = changed["value"][batch["mask"]]
        flat[hidden] += 3
        changed["value"][batch["mask"]] = flat
        other = reconstruct(model, changed)
        visible = {**batch, "value": batch["value"] + 3 * batch["mask"]}
        seen = reconstruct(model, visible)["estimate"]
    assert torch.equal(found["estimate"], other["estimate"])
    assert not torch.equal(found["estimate"], seen)
    assert {len(values) for values in found.values()} == {int(batch["mask"].sum())}


def test_an_estimate_knows_no_later_set(model, make_row, made_batch):
    row = make_row(8, [7, 1, 3, 12, 5])
    with torch.no_grad():
        whole = reconstruct(model, made_batch(row))
        known = reconstruct(model, made_batch(cut(row, 3)))
    count = len(known["estimate"])
    torch.testing.assert_close(known["estimate"], whole["estimate"][:count], rtol=1e-4, atol=1e-5)


def test_errors_of_sets_are_those_of_the_model_without_noise(make_model, batch):
    model = make_model(clean=True).eval()
    model.product = lambda *given: (given[0], given[0] * 0 - 60.0)
    with torch.no_grad():
        beliefs, out = model.beliefs(batch), model(batch, 3)
        found = set_errors(model, batch, beliefs.post_mu)
    torch.testing.assert_close(found, out["recon"], rtol=1e-4, atol=1e-4)


def test_a_long_stay_is_decoded_in_chunks_of_like_size(make_model, make_row, made_batch):
    batch = made_batch(*(make_row(n, [7, 1, 3, 12, 5] * 6) for n in range(4)))
    seen = []
    small, large = make_model(chunk_tokens=30).eval(), make_model().eval()
    encode, decode = small.sets.encode, small.sets.decode
    small.sets.encode = lambda part, *a, **k: seen.append(part["code"]) or encode(part, *a, **k)
    small.sets.decode = lambda z, code, *a: seen.append(code) or decode(z, code, *a)
    with torch.no_grad():
        found, whole = reconstruct(small, batch), reconstruct(large, batch)
    assert max(code.numel() for code in seen) <= 30
    for name, values in whole.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)
