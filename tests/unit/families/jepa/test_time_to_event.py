import pytest
import torch
from learning import learn

from ehr_ray.families.jepa.family import FAMILY
from ehr_ray.families.jepa.time_to_event import last_state, truth_after
from ehr_ray.nn.moment_heads import FIT_ROWS

HEAD = {
    "time_to_event_weight": 1.0,
    "time_to_event_codes": ("C1", "C3", "C5"),
    "time_to_event_bins": (1.0, 4.0),
}


@pytest.fixture
def batch_of(vocabulary, batch_of_events):
    """Batches of (minute, code) by patient."""
    return lambda patients, config: batch_of_events(FAMILY, vocabulary, config, patients, 1.0)


def test_codes_come_after_the_hour_of_the_last_row_of_the_context(make_model, batch_of):
    model = make_model(**HEAD)
    events = [(0, 1), (130, 3), (170, 1), (180, 5), (240, 1), (300, 0), (450, 2)]
    batch = batch_of([events, events, [(0, 1), (30, 3)]], model.config)
    assert batch["minute"][0].tolist() == [0, 120, 180, 240, 300, 420]
    context = torch.zeros(3, 6, dtype=torch.bool)
    context[0, :2] = context[1, :5] = context[2, 0] = True
    hours, event, real = truth_after(batch, context, model.time_to_event)
    assert real.tolist() == [[True], [True], [False]]
    assert event[:2, 0].tolist() == [[True, False, True], [False, False, False]]
    assert hours[0, 0].tolist() == [1.0, 4.5, 0.0]  # 180 is of the next hour
    assert hours[1, 0].tolist() == [1.5, 1.5, 1.5]


def test_the_state_of_a_context_is_told_nothing_of_what_comes_after_it(make_model, batch_of):
    for mask in ("future", "blocks"):
        model = make_model(**HEAD, mask=mask).eval()
        seen = []
        model.time_to_event.register_forward_pre_hook(lambda _module, i, seen=seen: seen.append(i))
        past = [(60 * hour, hour % 3) for hour in range(20)]
        for code in (1, 3):
            batch = batch_of([past + [(60 * h, code) for h in range(20, 24)]], model.config)
            for seed in range(12):
                context, _ = model.masks(batch, seed)
                if int(context[0].nonzero().max()) < 20:
                    model(batch, seed)
        states = [inputs[0] for inputs in seen]
        half = len(states) // 2
        assert half >= (12 if mask == "future" else 1)
        torch.testing.assert_close(states[:half], states[half:], rtol=0, atol=1e-6)
        assert [seen[i][1].event[0, 0, 1].item() for i in (0, half)] == [False, True]


def test_the_last_state_is_that_of_the_last_real_row():
    states = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert last_state(states, mask).tolist() == [[[4.0, 5.0]], [[6.0, 7.0]]]


def test_a_fitted_model_starts_at_the_rates_and_training_finds_whose_code_comes_soon(
    make_model, batch_of
):
    """Half of the patients have C1 every two hours, told by C2; the others never."""
    patients = []
    for i in range(24):
        events = [(60 * hour, 2 + i % 2) for hour in range(30)]
        events += [(60 * hour + 30, 1) for hour in range(0, 30, 2)] if i % 2 else []
        patients.append(sorted(events))
    model = make_model(**HEAD, mask="future", value_weight=0.0, outcomes=("C1",)).train()
    batch = batch_of(patients, model.config)
    FAMILY.training.fit_buffers(model, batch)
    assert FAMILY.loss(model, batch, {}, 0)["time_to_event"].count == 24 * 3
    gains = [means["time_to_event_gain"] for means in learn(FAMILY, model, batch, 31, 0.01)]
    assert abs(gains[0]) < 0.05
    assert gains[-1] > 0.05


def test_hazards_are_of_all_rows_and_of_the_first_day(make_model, make_batch):
    model = make_model(**HEAD).eval()
    batch = make_batch([40, 10], model.config)
    with torch.no_grad():
        found = FAMILY.evaluation.outputs["hazards"](model, batch)
        early = make_batch([24], model.config)
        alone = FAMILY.evaluation.outputs["hazards"](model, early)
    assert found["patient"].tolist() == [0, 1, 0]
    assert found["day"].tolist() == [0, 0, 1]
    assert found["minute"].tolist() == [39 * 60, 9 * 60, 24 * 60]
    assert found["hazard"].shape == (3, 3 * 3)
    assert alone["minute"].tolist() == [23 * 60]
    assert FAMILY.evaluation.outputs["hazards"](make_model(), make_batch([3])) == {}


def test_without_the_head_nothing_is_fitted_or_lost(make_model, make_batch):
    model = make_model()
    FAMILY.training.fit_buffers(model, make_batch([5]))
    assert FAMILY.training.fit_rows(model.config) == 0
    assert FAMILY.training.fit_rows(make_model(**HEAD).config) == FIT_ROWS
    assert "time_to_event" not in FAMILY.loss(model, make_batch([9]), {}, 0)


def test_each_row_of_the_head_has_its_code(make_model, vocabulary):
    axes = FAMILY.transfer.axes(make_model(**HEAD).config, vocabulary)
    assert axes["time_to_event.codes"].names == ("C1", "C3", "C5")
    assert "time_to_event.codes" not in FAMILY.transfer.axes(make_model().config, vocabulary)
