import numpy as np
import pytest
import torch

from ehr_ray.families.jepa.model import after_step
from ehr_ray.families.jepa.predict import (
    ENTRIES,
    cells,
    measure,
    pooled,
    predict,
    represent,
    represent_width,
    row_states,
    state_width,
    targets,
)

HOURS = [20, 7, 1, 30]


def test_pools_are_over_real_rows():
    states = torch.randn(2, 4, 3)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    found = pooled(states, mask, ("mean", "std", "min", "max", "first", "last")).view(2, 6, 3)
    own = states[1, :2]
    expected = [own.mean(0), own.std(0, correction=0), own.amin(0), own.amax(0), own[0], own[1]]
    torch.testing.assert_close(found[1], torch.stack(expected))
    one = torch.randn(1, 1, 3, requires_grad=True)
    pooled(one, torch.ones(1, 1, dtype=torch.bool), ("std",)).sum().backward()
    assert torch.isfinite(one.grad).all()


@pytest.mark.parametrize("name", ["online", "target"])
def test_the_embedding_is_of_the_encoder_asked_for(make_model, make_batch, name):
    model, batch = make_model(embed_with=name), make_batch(HOURS)
    before = predict(model, batch)["embedding"]
    assert before.shape == (4, represent_width(model)) == (4, 4 * state_width(model))
    with torch.no_grad():
        model.encoder.embed[0].weight.mul_(2)
    changed = not torch.allclose(predict(model, batch)["embedding"], before)
    assert changed == (name == "online")


def test_a_level_can_be_read_off_the_embedding(make_model, make_batch):
    """Nothing scales a patient by itself: a shift of all its values shifts its embedding."""
    model, batch = make_model(), make_batch(HOURS)
    shifted = {**batch, "value": batch["value"] + torch.tensor([1.0, 1.0, 0.0])}
    first, second = (predict(model, b)["embedding"] for b in (batch, shifted))
    assert (first - second).abs().max(1).values.min() > 0.01


def test_a_task_trains_the_encoder_alone_with_rows_hidden(make_model, make_batch):
    model, batch = make_model(hide_rows=0.5), make_batch(HOURS)
    torch.testing.assert_close(represent(model, batch, None), predict(model, batch)["embedding"])
    hidden = represent(model, batch, 1)
    assert not torch.allclose(hidden, represent(model, batch, None))
    assert torch.equal(hidden, represent(model, batch, 1))
    states, mask = row_states(model, batch, 1)
    assert mask.any(1).all()
    assert mask.sum() < sum(HOURS)
    assert states.shape[-1] == state_width(model)
    hidden.sum().backward()
    reached = {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None}
    assert reached == {"encoder"}


def test_targets_name_patient_and_position_and_one_alone_has_none(make_model, make_batch):
    model, batch = make_model(), make_batch(HOURS)
    with torch.no_grad():
        found = targets(model, batch)
        out = model(batch, 0)
    counts = torch.bincount(found["patient"], minlength=4)
    assert counts[2] == 0
    assert counts.max() <= ENTRIES
    _, hidden = model.masks(batch, 0)
    assert hidden[found["patient"], found["position"]].all()
    for entry, patient in enumerate(found["patient"].tolist()):
        distance = (out["predicted"][patient] - found["predicted"][entry]).abs().amax(-1)
        assert distance.min() < 1e-5
    assert (found["predicted"] - found["shuffled"]).abs().max() > 1e-3
    assert len(targets(model, make_batch([9]))["patient"]) == 0


def test_cells_are_hidden_values_beside_the_last_one_of_the_context(make_model, make_batch):
    model, batch = make_model(mask="future"), make_batch([30])
    with torch.no_grad():
        found = cells(model, batch)
    context, hidden = model.masks(batch, 0)
    code = (batch["cell"] % 6).numpy()
    row = (batch["cell"] // 6).numpy()
    level = batch["value"][:, 0].numpy()
    assert len(found["value"]) == sum(bool(hidden[0, r]) for r in row)
    for one in range(6):
        seen = [r for r, c in zip(row, code, strict=True) if c == one and bool(context[0, r])]
        last = level[(row == max(seen)) & (code == one)][0] if seen else 0.0
        mine = found["last"][found["code"] == one]
        np.testing.assert_allclose(mine, np.full(len(mine), last), rtol=1e-6)


def test_without_a_head_there_are_no_cells(make_model, make_batch):
    assert len(cells(make_model(value_weight=0.0), make_batch(HOURS))["value"]) == 0


def test_an_untrained_model_measures_as_one_that_learned_nothing(make_model, make_batch):
    model = make_model()
    found = measure(model, [make_batch(HOURS * 4), make_batch([9, 11])])
    assert found["skill"] < 0.05
    assert abs(found["shuffled_gap"]) < 0.05
    assert measure(model, []) == measure(model, [make_batch([1, 1])]) == {}
    after_step(model, {"momentum": 0.5})
