import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ehr_ray.errors import InputError
from ehr_ray.families.set_vae import chunking
from ehr_ray.families.set_vae.augment import keys_of, query_rows
from ehr_ray.families.set_vae.config import SetVAEConfig
from ehr_ray.families.set_vae.family import FAMILY as SET_VAE
from ehr_ray.families.set_vae.sequence import model as module
from ehr_ray.families.set_vae.sequence.family import FAMILY
from ehr_ray.families.set_vae.sequence.loss import loss
from ehr_ray.train.checkpoint import save_checkpoint
from ehr_ray.train.initialise import initialise

SCHEDULED = {"beta": 0.2, "free_bits": 0.0, "capacity": 0.0}
SEED = 12345
KINDS = pytest.mark.parametrize("prior", ["transformer", "gru"])
FIELDS = [field.name for field in dataclasses.fields(module.Beliefs)]


def objective(model, batch, **scheduled):
    terms = loss(model, batch, {**SCHEDULED, **scheduled}, SEED)
    return sum(term.coef * term.sum / term.count for term in terms.values() if term.coef)


def gradients(model, value):
    model.zero_grad(set_to_none=True)
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@KINDS
@pytest.mark.parametrize("poe", ["naive", "gated"])
def test_a_set_changes_its_own_posterior_and_what_is_expected_later(make_model, batch, prior, poe):
    """Of the third patient's five sets the value in the third is changed."""
    model = make_model(prior=prior, poe=poe).eval()
    at = (batch["patient"] == 2) & (batch["set_index"] == 2)
    changed = {**batch, "value": batch["value"] + 3 * (at.unsqueeze(1) & batch["mask"])}
    with torch.no_grad():
        before, after = model.beliefs(batch), model.beliefs(changed)
    where = [(getattr(before, n) != getattr(after, n)).any(1) for n in ("p_mu", "p_logvar")]
    later = (batch["patient"] == 2) & (batch["set_index"] > 2)
    assert all(torch.equal(moved, later) for moved in where)
    for name in ("q_mu", "q_logvar"):
        assert torch.equal((getattr(before, name) != getattr(after, name)).any(1), at)
    assert torch.equal((before.post_mu != after.post_mu).any(1), at | later)
    assert (before.state != after.state).any(1).tolist() == [False, False, True]


@KINDS
def test_the_gap_before_a_set_is_known_when_it_is_expected(make_model, batch, prior):
    model = make_model(prior=prior).eval()
    at = (batch["patient"] == 0) & (batch["set_index"] == 1)
    moved = {**batch, "minute": batch["minute"] + 30.0 * at}
    with torch.no_grad():
        before, after = model.beliefs(batch), model.beliefs(moved)
    told = (before.p_mu != after.p_mu).any(1)
    assert torch.equal(told, (batch["patient"] == 0) & (batch["set_index"] >= 1))
    assert torch.equal(before.q_mu, after.q_mu)
    assert before.gap[:3].tolist() == [0.0, 60.0, 60.0]
    assert after.gap[:3].tolist() == [0.0, 90.0, 30.0]


@KINDS
@pytest.mark.parametrize("training", [True, False])
def test_a_patient_is_the_same_in_any_batch(make_model, rows, made_batch, prior, training):
    model = make_model(prior=prior).train(training)
    seed = 7 if training else None
    with torch.no_grad():
        whole = model.beliefs(made_batch(*rows), seed)
        alone = [model.beliefs(made_batch(row), seed) for row in rows]
    for name in FIELDS:
        parts = torch.cat([getattr(found, name) for found in alone])
        torch.testing.assert_close(getattr(whole, name), parts, rtol=1e-4, atol=1e-5)


def test_a_stay_of_3000_sets_among_short_ones_is_as_it_is_alone(make_model, make_row, made_batch):
    row = make_row(77, [1 + i % 3 for i in range(3000)])
    model = make_model(chunk_tokens=1000).eval()
    rows = [make_row(1, [3, 5]), row, make_row(2, [4])]
    with torch.no_grad():
        whole, alone = (loss(model, made_batch(*r), SCHEDULED, SEED) for r in (rows, [row]))
        others = loss(model, made_batch(rows[0], rows[2]), SCHEDULED, SEED)
    for name in ("recon", "kl", "kl_nats"):
        total = alone[name].sum + others[name].sum
        torch.testing.assert_close(whole[name].sum, total, rtol=1e-5, atol=1e-3)
        assert float(whole[name].count) == 3003


def test_a_patient_without_events_is_believed_something_and_counts_for_nothing(
    make_model, make_row, made_batch
):
    model = make_model().train()
    rows = [make_row(1, [3, 5]), make_row(2, [0])]
    ours, theirs = (loss(model, made_batch(*r), SCHEDULED, SEED) for r in (rows, rows[:1]))
    for name in ("recon", "kl", "kl_nats", "kl_standard_nats"):
        assert float(ours[name].count) == float(theirs[name].count) == 2
        torch.testing.assert_close(ours[name].sum, theirs[name].sum, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(model.beliefs(made_batch(rows[1])).state).all()


class Count(TorchDispatchMode):
    operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


def test_there_is_no_loop_over_sets_nor_over_steps(make_model, make_row, made_batch):
    model, counts = make_model(), []
    for steps in (2, 25):
        batch = made_batch(make_row(1, [5] * steps), make_row(2, [5] * steps))
        with torch.no_grad(), Count() as count:
            model(batch, 1)
        counts.append(count.operations)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("training", [True, False])
def test_chunks_change_neither_the_loss_nor_its_gradient(
    make_model, rows, long_row, made_batch, monkeypatch, training
):
    """Many chunks are recomputed in backward: the draws must be those of the first pass."""
    calls = []
    plain = chunking.checkpoint
    monkeypatch.setattr(chunking, "checkpoint", lambda *a, **k: calls.append(1) or plain(*a, **k))
    batch, found, terms = made_batch(*rows, long_row), [], []
    for tokens in (10**6, 40):
        model = make_model(chunk_tokens=tokens, decode_sets=6).train(training)
        found.append(gradients(model, objective(model, batch)))
        with torch.no_grad():
            terms.append(loss(model, batch, SCHEDULED, SEED))
        assert bool(calls) == (tokens == 40)
    for name in ("recon", "kl", "kl_nats"):
        torch.testing.assert_close(terms[0][name].sum, terms[1][name].sum, rtol=1e-5, atol=1e-3)
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-5, msg=name)


def test_the_latent_is_drawn_and_the_divergence_is_not(make_model, batch):
    model = make_model(clean=True).eval()
    with torch.no_grad():
        first, again, other = (model(batch, seed) for seed in (1, 1, 2))
        assert torch.equal(first["recon"], again["recon"])
        assert (first["recon"] - other["recon"]).abs().min() > 1e-4
        assert torch.equal(first["kl"], other["kl"])
        sure = module.experts.product
        model.product = lambda *given: (sure(*given[:4])[0], torch.full_like(given[0], -40.0))
        first, other = (model(batch, seed)["recon"] for seed in (1, 2))
    torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-4)


def test_inputs_are_perturbed_and_targets_are_not(make_model, batch, monkeypatch):
    model = make_model(
        p_stale=1.0, p_live=1.0, val_noise_std=1.0, dir_noise_std=0.5, decoder_noise=0.0
    ).train()
    targets, plain = [], module.chamfer

    def recorded(decoded, target, mask, config):
        targets.append(target[mask])
        return plain(decoded, target, mask, config)

    monkeypatch.setattr(module, "chamfer", recorded)
    with torch.no_grad():
        first, other = (model.beliefs(batch, seed) for seed in (1, 2))
        model(batch, 1)
    assert (first.q_mu - other.q_mu).abs().max() > 1e-3
    clean = model.sets.directions[batch["code"]] * batch["value"].unsqueeze(-1)
    found, wanted = torch.cat(targets), clean[batch["mask"]]
    assert len(found) == len(wanted)
    order = [rows[:, 0].argsort() for rows in (found, wanted)]
    assert torch.equal(found[order[0]], wanted[order[1]])


def test_of_one_latent_the_error_is_the_same_unless_queries_are_shaken(make_model, batch):
    model = make_model().train()
    everything = torch.ones_like(batch["patient"], dtype=torch.bool)
    latent = torch.randn(len(everything), 8, generator=torch.Generator().manual_seed(0))
    rows = [query_rows(keys_of(batch, seed)) for seed in (1, 2)]
    assert torch.equal(*(model.errors(batch, latent, everything) for _ in range(2)))
    shaken = [model.errors(batch, latent, everything, r, noise=0.5) for r in rows]
    assert not torch.equal(*shaken)


@KINDS
@pytest.mark.parametrize("poe", ["naive", "gated"])
def test_the_divergence_trains_the_prior(make_model, batch, prior, poe):
    model = make_model(prior=prior, poe=poe, clean=True)
    terms = loss(model, batch, SCHEDULED, SEED)
    found = gradients(model, terms["kl"].sum)
    ours = [name for name, _ in model.named_parameters() if name.startswith(("prior.", "gate."))]
    assert [name for name in ours if not found[name].any()] == []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("prior."))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        loss(model, batch, SCHEDULED, SEED)["kl"].sum.backward()
        optimizer.step()
    assert loss(model, batch, SCHEDULED, SEED)["kl"].sum < 0.8 * terms["kl"].sum


def test_what_is_expected_is_reconstructed_with_where_the_product_is_decoded(make_model, batch):
    """The product is what is decoded, so the reconstruction reaches the prior and the set."""
    model = make_model(clean=True)
    found = gradients(model, loss(model, batch, SCHEDULED, SEED)["recon"].sum)
    assert found["prior.expect.out.weight"].any()
    assert found["sets.posterior.0.weight"].any()


def test_a_gate_stays_in_its_range_and_the_naive_product_has_none(make_model, batch):
    gated, naive = make_model(poe="gated"), make_model(poe="naive")
    assert not hasattr(naive, "gate")
    mu = torch.zeros(3, 5, 8)
    gap = torch.zeros(3, 5)
    for bias, gate in ((-1e4, module.GATE_RANGE[0]), (1e4, module.GATE_RANGE[1])):
        with torch.no_grad():
            gated.gate[-1].bias.fill_(bias)
            found = gated.product(mu + 1, mu, mu, mu, gap)
        expected = module.experts.product(mu + 1, mu, mu, mu, gate)
        torch.testing.assert_close(found, expected)


def test_a_draw_of_sets_leaves_the_expected_error_of_all(make_model, make_row, made_batch):
    """Stays of unlike length: their sets weigh the same whether drawn from 2 or from 12."""
    batch = made_batch(make_row(1, [3, 8]), make_row(2, [1] * 12), make_row(3, [9, 2, 7, 4, 5]))
    all_of_them, few = (make_model(clean=True, decode_sets=n).train() for n in (None, 2))
    with torch.no_grad():
        for model in (all_of_them, few):  # no draw but that of the sets
            model.product = lambda *given: (given[0], torch.full_like(given[0], -40.0))
        whole = loss(all_of_them, batch, SCHEDULED, SEED)["recon"]
        drawn = [loss(few, batch, SCHEDULED, 2 * i + 1)["recon"] for i in range(150)]
    assert {float(term.count) for term in drawn} == {float(whole.count)}
    sums = torch.stack([term.sum for term in drawn])
    assert sums.std() > 0.1
    assert (sums.mean() - whole.sum).abs() < 4 * sums.std() / 150**0.5
    assert (sums.mean() - whole.sum).abs() < 0.1 * whole.sum


def test_one_set_of_each_patient_is_decoded_where_the_config_says_so(make_model, batch):
    for mode in (True, False):
        assert make_model(decode_sets=1).train(mode)(batch, 1)["decoded"].shape == (3,)
        assert make_model(decode_sets=None).train(mode)(batch, 1)["decoded"].tolist() == [
            *range(len(batch["patient"]))
        ]


def test_a_task_trains_the_encoder_through_drawn_sets_and_sees_them_all(make_model, batch):
    few, whole = make_model(learn_sets=1), make_model(learn_sets=None)
    whole.load_state_dict(few.state_dict())
    ours, theirs = few.task_beliefs(batch, 5), whole.task_beliefs(batch, 5)
    torch.testing.assert_close(ours.post_mu, theirs.post_mu, rtol=1e-4, atol=1e-5)
    ours.post_mu.sum().backward()
    theirs.post_mu.sum().backward()
    name = "sets.posterior.0.weight"
    assert few.get_parameter(name).grad.norm() > 0
    assert not torch.allclose(few.get_parameter(name).grad, whole.get_parameter(name).grad)
    prior = "prior.expect.out.weight"
    torch.testing.assert_close(
        few.get_parameter(prior).grad, whole.get_parameter(prior).grad, rtol=1e-3, atol=1e-4
    )


@pytest.fixture
def set_vae_run(tmp_path, make_config, vocabulary, tiny_experiment):
    """The checkpoint of a SetVAE of these sizes: set_vae_run(width=32)."""

    def make(**changes):
        shared = {f.name for f in dataclasses.fields(SetVAEConfig)}
        sizes = {k: v for k, v in vars(make_config(**changes)).items() if k in shared}
        torch.manual_seed(99)
        source = SET_VAE.build(SetVAEConfig(**sizes), vocabulary)
        experiment = dataclasses.replace(tiny_experiment(), model=source.config)
        save_checkpoint(tmp_path, source, experiment, vocabulary)
        return source, tmp_path

    return make


def test_a_set_vae_run_starts_the_sets_and_nothing_else(make_model, set_vae_run, vocabulary):
    source, folder = set_vae_run()
    model = make_model()
    prior = {name: value.clone() for name, value in model.prior.state_dict().items()}
    lines = initialise(model, folder, FAMILY, vocabulary)
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.sets.state_dict()[name], tensor), name
        assert f"sets.{name}: copied" in lines
    assert all(torch.equal(model.prior.state_dict()[name], old) for name, old in prior.items())
    new = {line for line in lines if "copied" not in line}
    assert new == {f"prior.{name}: new, initialised" for name in prior}


def test_a_run_of_other_sizes_is_refused(make_model, set_vae_run, vocabulary):
    _, folder = set_vae_run(width=32)
    with pytest.raises(InputError, match="values fit this model"):
        initialise(make_model(), folder, FAMILY, vocabulary)


@pytest.mark.parametrize("alone", [True, False])
def test_a_reader_of_sets_computed_again_changes_no_gradient(make_model, vocabulary, batch, alone):
    """A SetVAE, and the sets of a stay: less is kept for the gradient."""
    found, kept = [], []
    for recomputed in (False, True):
        torch.manual_seed(0)
        if alone:
            config = SetVAEConfig(embedding_width=16, reduced=8, width=16, latent=4, heads=2)
            family, model = SET_VAE, SET_VAE.build(config, vocabulary)
        else:
            family, model = FAMILY, make_model()
        for part in model.modules():
            if hasattr(part, "recomputed"):
                part.recomputed = recomputed
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda saved, sizes=sizes: sizes.append(saved.nbytes) or saved, lambda saved: saved
        ):
            terms = family.loss(model.train(), batch, SCHEDULED, SEED)
        kept.append(sum(sizes))
        value = sum(term.coef * term.sum / term.count for term in terms.values() if term.coef)
        found.append(gradients(model, value))
    assert kept[1] < kept[0] / 2
    assert found[0].keys() == found[1].keys()
    assert [name for name in found[0] if not torch.equal(found[0][name], found[1][name])] == []
