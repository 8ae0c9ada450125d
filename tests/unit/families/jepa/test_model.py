import pytest
import torch

from ehr_ray.families.jepa.config import PRESETS
from ehr_ray.families.jepa.dense_rows import dense
from ehr_ray.families.jepa.model import JEPA, Encoder, Predictor, after_step


def size_of(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("preset", "columns", "encoder", "predictor"),
    [
        ("tiny", 25, 5.43, 1.86),
        ("small", 25, 21.62, 1.93),
        ("base", 257, 86.66, 11.25),
        ("large", 257, 304.98, 15.0),
    ],
)
def test_presets_have_the_published_sizes(preset, columns, encoder, predictor):
    """In millions; `columns` is how many numbers a row is told by."""
    with torch.device("meta"):
        sizes = size_of(Encoder(columns, PRESETS[preset])), size_of(Predictor(PRESETS[preset]))
    assert [round(size / 1e6, 2) for size in sizes] == [encoder, predictor]


def test_the_target_starts_as_the_encoder_and_is_not_trained(make_model, make_batch):
    model = make_model()
    for own, other in zip(model.target.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(own, other)
        assert not own.requires_grad
    out = model(make_batch([9, 12]), 3)
    assert not out["goal"].requires_grad
    assert out["predicted"].requires_grad
    torch.testing.assert_close(out["goal"].mean(-1), torch.zeros(2, out["goal"].shape[1]))


def test_the_target_follows_the_encoder_by_its_momentum(make_model):
    model = make_model()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in model.target.parameters()]
    after_step(model, {"momentum": 0.9})
    pairs = zip(before, model.target.parameters(), model.encoder.parameters(), strict=True)
    for old, new, online in pairs:
        torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
    after_step(model, {"momentum": 1.0})
    once = [p.clone() for p in model.target.parameters()]
    after_step(model, {"momentum": 1.0})
    assert all(torch.equal(*pair) for pair in zip(once, model.target.parameters(), strict=True))


def test_every_patient_of_a_batch_trains_the_model(make_model, make_batch):
    """Each has its own loss, and its own gradient: no patient stands for the others."""
    model, batch = make_model(), make_batch([9, 20, 5, 14])
    out = model(batch, 3)
    errors = ((out["predicted"] - out["goal"]).square().mean(-1) * out["wanted"]).sum(1)
    weight = model.encoder.embed[0].weight
    gradients = [torch.autograd.grad(e, weight, retain_graph=True)[0] for e in errors]
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert all((gradients[0] - other).abs().max() > 1e-6 for other in gradients[1:])


def test_hidden_rows_reach_the_prediction_by_nothing_but_their_time(make_model, make_batch):
    model, batch = make_model(), make_batch([16, 12])
    _, hidden = model.masks(batch, 3)
    sheet = dense(batch)
    place = torch.arange(batch["mask"].numel()).view_as(batch["mask"])[hidden]
    of_hidden = torch.isin(batch["cell"] // sheet.observed.shape[2], place)
    changed = {**batch, "value": torch.where(of_hidden[:, None], 9.0, batch["value"])}
    first, second = model(batch, 3), model(changed, 3)
    torch.testing.assert_close(first["predicted"], second["predicted"])
    assert (first["goal"] - second["goal"]).abs().max() > 1e-3
    late = {**batch, "minute": batch["minute"] + 600 * hidden}
    assert (model(late, 3)["predicted"] - first["predicted"]).abs().max() > 1e-4


def test_padding_and_neighbours_change_nothing(make_model, make_batch):
    model = make_model()
    together, alone = model(make_batch([6, 30]), 3), model(make_batch([6]), 3)
    count = alone["wanted"].sum()
    for name in ("predicted", "goal", "estimate"):
        torch.testing.assert_close(together[name][0, :count], alone[name][0, :count])
    torch.testing.assert_close(together["state"][0], alone["state"][0])


def test_a_model_without_a_head_of_values_has_none(make_model, make_batch):
    model = make_model(value_weight=0.0)
    assert not any(name.startswith("values") for name, _ in model.named_parameters())
    assert "estimate" not in model(make_batch([9]), 3)


def test_the_goals_are_never_dropped_out(make_model, make_batch):
    model, batch = make_model(dropout=0.5), make_batch([9, 12])
    first, second = (model.train().goals(dense(batch)) for _ in range(2))
    assert torch.equal(first, second)
    assert model.encoder.training


@pytest.mark.parametrize("options", [{"level_noise": 0.5}, {"time_jitter": 30.0}])
def test_the_context_alone_is_augmented_and_in_training_alone(make_model, make_batch, options):
    plain, shaken, batch = make_model(), make_model(**options), make_batch([16, 12])
    first, second = (model.train()(batch, 3) for model in (plain, shaken))
    assert (first["predicted"] - second["predicted"]).abs().max() > 1e-5
    assert torch.equal(first["goal"], second["goal"])
    first, second = (model.eval()(batch, 3) for model in (plain, shaken))
    assert torch.equal(first["predicted"], second["predicted"])


def test_a_row_goes_through_two_layers_before_any_other_is_seen(make_model):
    encoder = make_model().encoder
    linear = [layer for layer in encoder.embed if isinstance(layer, torch.nn.Linear)]
    assert len(linear) == 2
    assert isinstance(encoder.embed[-1], torch.nn.LayerNorm)
    rows = torch.randn(1, 5, linear[0].in_features)
    torch.testing.assert_close(encoder.embed(rows)[:, 3:4], encoder.embed(rows[:, 3:4]))


def test_additions_of_later_blocks_begin_smaller(make_config, vocabulary):
    """By 1 / sqrt(2 i), and nothing that is initialised later undoes it."""
    torch.manual_seed(0)
    model = JEPA(make_config(width=64, depth=4, heads=4, predictor_width=64), vocabulary)
    for part in (model.encoder, model.target):
        first, *later = [block.out.weight.std() for block in part.blocks]
        found = torch.stack([first / other for other in later])
        torch.testing.assert_close(found, torch.tensor([2.0, 3.0, 4.0]).sqrt(), rtol=0.1, atol=0)


def test_states_are_normalised_before_they_are_compared_and_predicted(make_model, make_batch):
    model, entered = make_model(), []
    model.predictor.enter.register_forward_hook(lambda _m, x, _y: entered.append(x[0]))
    model.predictor.leave.register_forward_hook(lambda _m, x, _y: entered.append(x[0]))
    model(make_batch([9, 12]), 3)
    assert len(entered) == 2
    for states in entered:
        torch.testing.assert_close(states.mean(-1), torch.zeros(states.shape[:2]))


def test_states_of_the_encoder_itself_are_targets_with_a_gradient(make_model, make_batch):
    model, batch = make_model(target="online", value_weight=0.0).train(), make_batch([20, 7])
    assert not hasattr(model, "target")
    goal = model(batch, 5)["goal"]
    (gradient,) = torch.autograd.grad(goal.square().mul(goal).sum(), model.encoder.time.weight)
    assert gradient.abs().max() > 0
    after_step(model, {"momentum": 0.5})
    average = make_model(value_weight=0.0)
    torch.testing.assert_close(goal, average(batch, 5)["goal"])  # which starts as the encoder
    assert not average(batch, 5)["goal"].requires_grad
    with torch.no_grad():
        assert not model(batch, 5)["goal"].requires_grad
