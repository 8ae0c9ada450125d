import pytest
import torch

from ehr_ray.families.set_vae import chunking
from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.loss import chamfer
from ehr_ray.families.set_vae.predict import (
    anomalies,
    even_sets,
    latents,
    pooled,
    predict,
    reconstruct,
    represent,
    set_scores,
)
from ehr_ray.families.set_vae.wrong_sets import BETA
from ehr_ray.nn.gaussian import kl_standard


@pytest.fixture
def model(make_model):
    return make_model(eval_decoder_noise=0.3).eval()


def test_prediction_is_deterministic(model, batch):
    with torch.no_grad():
        first = predict(model, batch)
        torch.manual_seed(9)
        second = predict(model, batch)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_embedding_a_patient_of_all_levels_and_pools(model, batch):
    out = predict(model, batch)
    assert out["embedding"].shape == (3, 2 * 4 * 5)
    assert out["kl_nats"].shape == (3,)
    assert (out["kl_nats"] > 0).all()


def test_long_stays_are_embedded_from_evenly_spaced_sets(make_model, make_row, make_config):
    rows = [make_row(1, [2] * 10), make_row(2, [3] * 2), make_row(3, [1] * 5)]
    batch = collate(rows, make_config())
    found = even_sets(batch, 4)
    assert found["num_sets"].tolist() == [4, 2, 4]
    kept = [found["set_index"][found["patient"] == i].tolist() for i in range(3)]
    assert kept == [[0, 3, 6, 9], [0, 1], kept[2]]
    assert (kept[2][0], kept[2][-1], len(set(kept[2]))) == (0, 4, 4)
    assert even_sets(batch, None) is batch
    assert even_sets(batch, 10) is batch
    few, many = make_model(predict_sets=4).eval(), make_model(predict_sets=None).eval()
    torch.testing.assert_close(predict(few, batch), predict(many, found))
    whole = predict(many, batch)["embedding"]
    torch.testing.assert_close(predict(few, batch)["embedding"][1], whole[1])


@pytest.mark.parametrize("how", ["mean", "std", "min", "max", "first", "last"])
def test_pooling_reduces_each_patients_sets(how):
    torch.manual_seed(0)
    values, sizes = torch.randn(6, 4), [3, 1, 2]
    reduce = {
        "mean": lambda x: x.mean(0),
        "std": lambda x: x.std(0, correction=0),
        "min": lambda x: x.min(0).values,
        "max": lambda x: x.max(0).values,
        "first": lambda x: x[0],
        "last": lambda x: x[-1],
    }[how]
    expected = torch.stack([reduce(part) for part in values.split(sizes)])
    torch.testing.assert_close(pooled(values, torch.tensor(sizes), how), expected)


def test_a_patient_without_events_has_a_finite_embedding_whatever_the_batch(
    model, make_row, make_config
):
    empty = make_row(9, [0])
    alone = predict(model, collate([empty], make_config()))
    among = predict(model, collate([make_row(1, [12, 3]), empty], make_config()))
    assert all(torch.isfinite(value).all() for value in alone.values())
    torch.testing.assert_close(alone["embedding"][0], among["embedding"][1], rtol=1e-4, atol=1e-5)


def test_latents_are_those_of_sets_with_tokens(model, make_row, make_config):
    batch = collate([make_row(1, [3, 4]), make_row(2, [0]), make_row(3, [2])], make_config())
    found = latents(model, batch)
    assert found["patient"].tolist() == [0, 0, 2]
    assert found["mu"].shape == found["logvar"].shape == (3, 8)
    nats = kl_standard(found["mu"], found["logvar"]).sum(1)
    per_patient = predict(model, batch)["kl_nats"]
    torch.testing.assert_close(per_patient[[0, 2]], torch.stack([nats[:2].mean(), nats[2]]))


def test_reconstruction_names_every_token_and_hides_the_same_ones_each_time(model, batch):
    found, again = reconstruct(model, batch), reconstruct(model, batch)
    mask = batch["mask"]
    assert {len(value) for value in found.values()} == {int(mask.sum())}
    for name in ("code", "value", "carried"):
        assert torch.equal(found[name], batch[name][mask])
    assert torch.equal(found["set"], batch["set_index"].unsqueeze(1).expand_as(mask)[mask])
    assert found["hidden"].any()
    assert not found["hidden"].all()
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_an_estimate_is_the_projection_of_its_own_vector_on_its_direction(model, batch):
    mask, along = batch["mask"], model.directions[batch["code"]]
    torch.manual_seed(0)
    vectors = torch.randn(model.directions.shape)
    model.decode = lambda _, code: vectors[code]
    decoded = vectors[batch["code"]]
    expected = torch.tensor(
        [
            sum(a * b for a, b in zip(decoded[i, j].tolist(), along[i, j].tolist(), strict=True))
            for i, j in mask.nonzero().tolist()
        ]
    )
    torch.testing.assert_close(reconstruct(model, batch)["estimate"], expected)
    value = torch.randn(len(vectors))
    model.decode = lambda _, code: model.directions[code] * value[code].unsqueeze(-1)
    torch.testing.assert_close(reconstruct(model, batch)["estimate"], value[batch["code"]][mask])


def test_a_hidden_value_does_not_reach_its_own_estimate(model, batch):
    hidden = reconstruct(model, batch)["hidden"]
    changed = {**batch, "value": batch["value"].clone()}
    flat = changed["value"][batch["mask"]]
    flat[hidden] += 3
    changed["value"][batch["mask"]] = flat
    found, other = reconstruct(model, batch), reconstruct(model, changed)
    assert torch.equal(found["estimate"], other["estimate"])


def test_each_set_is_scored_by_itself_against_the_prior(model, batch):
    with torch.no_grad():
        posterior = model.encode(batch)
        decoded = model.decode(list(posterior.mu), batch["code"])
        error = chamfer(decoded, model.target(batch), batch["mask"], model.config)
        kl = kl_standard(posterior.mu, posterior.logvar).sum((0, 2))
        found, table = set_scores(model, batch), anomalies(model, batch)
    torch.testing.assert_close(found["recon"], error)
    torch.testing.assert_close(found["nelbo"], error + BETA * kl)
    clean = table["kind"] == 0
    torch.testing.assert_close(table["nelbo"][clean], found["nelbo"][batch["mask"].any(1)])
    assert set(table["kind"].tolist()) == set(range(7))
    assert (table["kind"] == 1).sum() == 3  # one set of each patient


@pytest.mark.parametrize("function", [predict, latents, reconstruct])
def test_long_stays_are_read_in_chunks_of_like_size(make_model, make_row, make_config, function):
    batch = collate([make_row(n, [7, 1, 3, 12, 5] * 6) for n in range(4)], make_config())
    seen = []

    def told(model):
        encode, decode = model.encode, model.decode
        model.encode = lambda part, *a, **k: seen.append(part["code"]) or encode(part, *a, **k)
        model.decode = lambda z, code, *a, **k: seen.append(code) or decode(z, code, *a, **k)
        return model

    small, large = told(make_model(chunk_tokens=30).eval()), make_model().eval()
    with torch.no_grad():
        found, whole = function(small, batch), function(large, batch)
    assert len(seen) > 4
    assert max(code.numel() for code in seen) <= 30
    for name, values in whole.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)


def test_for_a_task_sets_are_read_in_chunks_that_can_be_computed_once_more(
    make_model, make_row, make_config, monkeypatch
):
    batch = collate([make_row(n, [7, 1, 3, 12, 5] * 6) for n in range(4)], make_config())
    plain, calls, found = chunking.checkpoint, [], []
    monkeypatch.setattr(chunking, "checkpoint", lambda *a, **k: calls.append(1) or plain(*a, **k))
    for tokens, recomputed in ((65536, False), (65536, True), (60, False)):
        calls.clear()
        model = make_model(chunk_tokens=tokens, perturb_task=True).train()
        model.recomputed = recomputed
        embedding = represent(model, batch, 7)
        embedding.square().sum().backward()
        found.append((embedding.detach(), [p.grad for p in model.encoder.parameters()]))
        pieces = len(chunking.by_size(batch, tokens))
        assert len(calls) == (pieces if recomputed or pieces > chunking.GROUPS else 0)
    assert calls
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], rtol=1e-4, atol=1e-5)
