import pytest
import torch

from ehr_ray.families.set_vae.augment import Keys, query_rows
from ehr_ray.families.set_vae.data import collate
from ehr_ray.families.set_vae.loss import chamfer, loss
from ehr_ray.families.set_vae.predict import predict
from ehr_ray.nn.noise import combine

SCHEDULED = {"beta": 0.2, "free_bits": 0.05}
SEED = 12345


@pytest.fixture
def model(make_model):
    return make_model()


def posterior(model, batch, **options):
    return model.encode(batch, **options).mu


def assert_differ(a, b):
    assert (a - b).abs().max() > 1e-3


def permuted(batch):
    """Each set's real tokens in another order; padding stays behind."""
    torch.manual_seed(0)
    order = (torch.rand(batch["mask"].shape) + ~batch["mask"] * 2.0).argsort(1)
    tokens = ("code", "value", "age", "carried", "mask")
    return {k: v.gather(1, order) if k in tokens else v for k, v in batch.items()}


def padded(batch, extra=5):
    """The same sets with more padding, full of rubbish."""
    torch.manual_seed(0)
    shape = (len(batch["mask"]), extra)
    rubbish = {
        "code": torch.randint(0, 12, shape),
        "value": 100 * torch.randn(shape),
        "age": 1e4 * torch.rand(shape),
        "carried": torch.rand(shape) < 0.5,
        "mask": torch.zeros(shape, dtype=torch.bool),
    }
    old = {k: v for k, v in batch.items() if k in rubbish}
    old = {k: torch.where(batch["mask"], v, rubbish[k][:, :1]) for k, v in old.items()}
    return {**batch, **{k: torch.cat([old[k], rubbish[k]], 1) for k in rubbish}}


@pytest.mark.parametrize("change", [permuted, padded])
@pytest.mark.parametrize("training", [True, False])
def test_order_and_padding_change_nothing(model, batch, change, training):
    model.train(training)
    other = change(batch)
    assert not torch.equal(other["value"], batch["value"])
    with torch.no_grad():
        torch.testing.assert_close(
            predict(model, other), predict(model, batch), rtol=1e-4, atol=1e-5
        )
        ours, theirs = loss(model, other, SCHEDULED, SEED), loss(model, batch, SCHEDULED, SEED)
    for name, term in ours.items():
        torch.testing.assert_close(term.sum, theirs[name].sum, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_a_patient_is_the_same_in_any_batch(model, rows, make_config, training):
    model.train(training)
    whole = collate(rows, make_config())
    alone = [collate([row], make_config()) for row in rows]
    with torch.no_grad():
        together = predict(model, whole)["embedding"]
        torch.testing.assert_close(
            together,
            torch.cat([predict(model, b)["embedding"] for b in alone]),
            atol=1e-5,
            rtol=1e-4,
        )
        total = loss(model, whole, SCHEDULED, SEED)["recon"].sum
        parts = [loss(model, b, SCHEDULED, SEED)["recon"].sum for b in alone]
    torch.testing.assert_close(total, torch.stack(parts).sum(), rtol=1e-5, atol=1e-4)


def test_zero_hidden_and_absent_are_three_different_things(model, batch):
    where = (0, 1)
    zero = {**batch, "value": batch["value"].clone()}
    zero["value"][where] = 0.0
    hidden = torch.zeros_like(batch["mask"])
    hidden[where] = True
    absent = {**batch, "mask": batch["mask"].clone()}
    absent["mask"][where] = False
    with torch.no_grad():
        found = [
            posterior(model, zero)[:, 0],
            posterior(model, batch, hidden=hidden)[:, 0],
            posterior(model, absent)[:, 0],
            posterior(model, batch)[:, 0],
        ]
    for i, one in enumerate(found):
        for other in found[:i]:
            assert_differ(one, other)


def test_a_hidden_token_keeps_its_identity_and_hides_its_value(model, batch):
    hidden = torch.zeros_like(batch["mask"])
    hidden[0, 1] = True
    before = posterior(model, batch, hidden=hidden)
    renamed = {**batch, "code": batch["code"].clone()}
    renamed["code"][0, 1] = (batch["code"][0, 1] + 1) % 12
    assert_differ(posterior(model, renamed, hidden=hidden), before)
    louder = {**batch, "value": batch["value"].clone()}
    louder["value"][0, 1] += 5
    assert torch.equal(posterior(model, louder, hidden=hidden), before)


@pytest.mark.parametrize("field", ["value", "age", "carried", "code"])
def test_every_channel_of_a_token_reaches_the_posterior(model, batch, field):
    changed = {**batch, field: batch[field].clone()}
    old = changed[field][0, 0]
    changed[field][0, 0] = ~old if field == "carried" else (old + 3) % 12
    assert_differ(posterior(model, changed)[:, 0], posterior(model, batch)[:, 0])
    assert torch.equal(posterior(model, changed)[:, 1:], posterior(model, batch)[:, 1:])


def test_the_sign_of_a_value_matters_to_the_encoder_and_to_the_loss(model, batch):
    mirrored = {**batch, "value": -batch["value"]}
    assert_differ(posterior(model, mirrored), posterior(model, batch))
    out = model.eval().compared(batch, 1)
    ours, theirs = (
        chamfer(out["decoded"], sign * out["target"], out["mask"], model.config) for sign in (1, -1)
    )
    assert (ours - theirs).abs().min() > 1e-4


def test_the_target_is_the_clean_value_along_its_fixed_direction(make_model, batch):
    model = make_model(p_stale=1.0, p_live=1.0, val_noise_std=1.0).train()
    out = model.compared(batch, 1)
    assert out["decoded"].requires_grad
    assert not out["target"].requires_grad
    clean = model.directions[batch["code"]] * batch["value"].unsqueeze(-1)
    assert torch.equal(out["target"], clean)
    torch.testing.assert_close(out["target"].norm(dim=-1), batch["value"].abs())


def test_training_moves_every_parameter_and_leaves_the_target(make_model, batch):
    model = make_model().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    target, directions = model.target(batch), model.directions.clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for seed in range(3):
        terms = loss(model, batch, SCHEDULED, seed)
        optimizer.zero_grad()
        sum(term.coef * term.sum for term in terms.values()).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []
    assert torch.equal(model.directions, directions)
    assert torch.equal(model.target(batch), target)
    assert "directions" in model.state_dict()


def test_a_variable_has_the_same_direction_in_every_model(make_model):
    assert torch.equal(make_model(seed=1).directions, make_model(seed=2).directions)
    lengths = make_model().directions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(12))


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_every_trainable_parameter_gets_a_gradient(make_model, batch, levels):
    model = make_model(levels=levels).train()
    terms = loss(model, batch, SCHEDULED, SEED)
    sum(term.coef * term.sum for term in terms.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
    assert model(batch, 1)["mu"].shape == (levels, 9, 4)


def test_each_level_of_the_hierarchy_reaches_the_decoder(make_model, batch):
    model = make_model().eval()
    latents = [torch.randn(9, 4) for _ in range(2)]
    before = model.decode(latents, batch["code"])
    for level in range(2):
        other = [z + (i == level) for i, z in enumerate(latents)]
        assert_differ(model.decode(other, batch["code"]), before)


def rows_of(keys, code):
    keys = torch.tensor(keys)
    return query_rows(Keys(keys, combine(keys[:, None], code)))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_vector_is_decoded_by_its_name_whatever_else_is_in_the_set(make_model, noise):
    model = make_model().eval()
    torch.manual_seed(0)
    latents, code = [torch.randn(2, 4) for _ in range(2)], torch.tensor([[0, 5, 7], [5, 5, 11]])
    rows = rows_of([3, 4], code)
    whole = model.decode(latents, code, rows, noise)
    for column in range(3):
        alone = model.decode(latents, code[:, [column]], rows[:, [column]], noise)
        torch.testing.assert_close(alone[:, 0], whole[:, column])
    torch.testing.assert_close(whole[1, 0], whole[1, 1])
    assert_differ(whole[0, 0], whole[0, 1])
    assert_differ(whole[0, 1], whole[1, 0])


def test_noise_on_queries_is_a_function_of_the_key_and_the_variable(make_model):
    model = make_model().eval()
    latents = [torch.randn(1, 4).expand(2, 4) for _ in range(2)]
    code = torch.tensor([[0, 1], [0, 1]])
    calm = model.decode(latents, code)
    same = model.decode(latents, code, rows_of([8, 8], code), 0.5)
    other = model.decode(latents, code, rows_of([8, 9], code), 0.5)
    torch.testing.assert_close(calm[0], calm[1])
    torch.testing.assert_close(same[0], same[1])
    assert_differ(same, calm)
    assert_differ(other[0], other[1])


def test_beside_attention_a_value_is_read_off_the_latents_along_its_direction(make_model, batch):
    model = make_model().eval()
    for part in model.out[1].parameters():
        part.data.zero_()
    latents = [torch.randn(9, 4) for _ in range(2)]
    decoded = model.decode(latents, batch["code"])
    value = (decoded * model.directions[batch["code"]]).sum(-1, keepdim=True)
    torch.testing.assert_close(decoded, value * model.directions[batch["code"]])
    assert value.abs().min() > 0
    for level, project in enumerate(model.project):
        moved = [z + (i == level) * 2.0 for i, z in enumerate(latents)]
        step = (model.decode(moved, batch["code"]) * model.directions[batch["code"]]).sum(-1)
        expected = 2.0 * project(model.directions).sum(-1)[batch["code"]]
        torch.testing.assert_close(step - value.squeeze(-1), expected, rtol=1e-3, atol=1e-5)


def test_the_plain_readout_is_not_rounded_by_autocast(make_model, batch):
    model = make_model()
    with torch.no_grad():
        model.out[1].weight.zero_()  # attention says nothing, in any precision
        model.out[1].bias.zero_()
        latents = list(torch.randn(model.config.levels, len(batch["code"]), model.config.latent))
        wanted = model.decode(latents, batch["code"])
        with torch.autocast("cpu", torch.bfloat16):
            found = model.decode(latents, batch["code"])
    assert wanted.abs().max() > 0
    assert torch.equal(found, wanted)


def test_beside_attention_the_posterior_has_a_linear_code_of_the_values(model, batch):
    for head in model.posterior:
        head.weight.data[:, : model.config.width] = 0.0
    ends = [{**batch, "value": batch["value"] + shift} for shift in (-2.0, 0.0, 2.0)]
    low, middle, high = (posterior(model, end) for end in ends)
    assert_differ(low, high)
    torch.testing.assert_close((low + high) / 2, middle, rtol=1e-4, atol=1e-5)


def test_latents_are_sampled_by_the_posterior_and_the_seed(model, batch):
    model.eval()
    with torch.no_grad():
        one, again, other = (model.compared(batch, seed)["decoded"] for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert_differ(one, other)
        certain = torch.full_like(model.compared(batch, 1)["logvar"], -40.0)
        model.encode = lambda *_: type("P", (), {"mu": 0 * certain + 0.5, "logvar": certain})
        torch.testing.assert_close(
            model.compared(batch, 1)["decoded"], model.compared(batch, 2)["decoded"]
        )


@pytest.mark.parametrize("training", [True, False])
def test_large_sets_and_sets_without_tokens_are_finite(make_model, make_row, training):
    model = make_model().train(training)
    batch = collate([make_row(1, [12]), make_row(2, [0])], model.config)
    out = model.compared(batch, 1)
    assert out["decoded"].shape == out["target"].shape == (2, 12, 8)
    assert all(torch.isfinite(value).all() for value in out.values())
    terms = loss(model, batch, SCHEDULED, SEED)
    sum(term.coef * term.sum for term in terms.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_bf16_gives_float32_outputs_close_to_those_of_float32(model, batch):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.eval().compared(batch, 1)
    with torch.no_grad():
        high = model.compared(batch, 1)
    assert low["decoded"].dtype == low["mu"].dtype == torch.float32
    for name in ("mu", "decoded"):
        torch.testing.assert_close(low[name], high[name], atol=0.05, rtol=0.05)
