import math

import numpy as np
import pytest
import torch
from learning import learn

from ehr_ray.families.jepa.family import FAMILY
from ehr_ray.families.jepa.future_value import values_of
from ehr_ray.nn.moment_heads import FIT_ROWS

HEAD = {
    "future_value_weight": 1.0,
    "future_value_codes": ("C1", "C3"),
    "future_value_hours": (2.0, 5.0),
}


@pytest.fixture
def batch_of(vocabulary, batch_of_events):
    """Batches of (minute, code, value) by patient."""
    return lambda patients, config: batch_of_events(FAMILY, vocabulary, config, patients, 1.0)


def test_windows_begin_with_the_hour_after_the_context(make_model, batch_of, vocabulary):
    model = make_model(**HEAD)
    events = [(0, 1, 2.0), (130, 3, 0.5), (179, 1, 1.0), (180, 1, -1.0), (240, 1, 0.5), (300, 3)]
    events += [(470, 0), (480, 3, 9.0), (490, 1)]
    batch = batch_of([events, [(0, 1), (30, 3)]], model.config)
    context = torch.zeros(2, batch["mask"].shape[1], dtype=torch.bool)
    context[0, :2] = context[1, 0] = True
    value, asked, last, known = values_of(batch, context, model.future_value)

    def told(number, code):
        z = (number - vocabulary.location[code]) / vocabulary.scale[code]
        return pytest.approx(math.asinh(z), abs=1e-3)

    scaled = [(told(-1.0, 1), told(0.5, 1))]
    mean = np.mean([one.expected for one in scaled[0]])
    assert asked[0, 0].tolist() == [[True, False], [False, True]]
    assert value[0, 0, 0, 0].item() == pytest.approx(mean, abs=1e-3)
    assert value[0, 0, 1, 1].item() == told(1.0, 3)  # 480 is after its end
    assert known.all()
    assert last[0, 0].tolist() == [told(1.0, 1), told(0.5, 3)]
    assert not asked[1].any()


def test_the_truth_is_that_of_a_loop(make_model, make_patient, vocabulary):
    model = make_model(**HEAD)
    patients = [make_patient(10 + i, n) for i, n in enumerate([30, 8, 1, 0])]
    rows = [FAMILY.transform(patient, model.config, vocabulary) for patient in patients]
    batch = FAMILY.collate(rows, model.config)
    for seed in range(4):
        context, _ = model.masks(batch, seed)
        value, asked, last, known = (
            part[:, 0] for part in values_of(batch, context, model.future_value)
        )
        for row, patient in enumerate(patients):
            chosen = context[row] & batch["mask"][row]
            moment = float(batch["minute"][row][chosen].max()) + 60 if chosen.any() else np.inf
            for slot, code in enumerate((1, 3)):
                z = (patient.value - vocabulary.location[code]) / vocabulary.scale[code]
                mine = (patient.code == code) & ~patient.static
                past = np.arcsinh(z)[mine & (patient.minute < moment)]
                if chosen.any():
                    assert bool(known[row, slot]) == bool(len(past))
                if chosen.any() and len(past):
                    assert float(last[row, slot]) == pytest.approx(past[-1], abs=2e-3)
                for k, (start, end) in enumerate([(0, 2), (2, 5)]):
                    hours = (patient.minute - moment) / 60
                    there = np.arcsinh(z)[mine & (hours >= start) & (hours < end)]
                    assert bool(asked[row, k, slot]) == bool(len(there))
                    if len(there):
                        wanted = pytest.approx(there.mean(), abs=2e-3)
                        assert float(value[row, k, slot]) == wanted


def test_what_is_told_of_a_context_knows_nothing_after_it(make_model, batch_of):
    model = make_model(**HEAD, mask="future").eval()
    seen = []
    model.future_value.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs))
    past = [(60 * hour, hour % 4, float(hour % 3)) for hour in range(20)]
    for value in (1.0, -2.0):
        batch = batch_of([past + [(60 * h, 1, value) for h in range(20, 24)]], model.config)
        for seed in range(12):
            context, _ = model.masks(batch, seed)
            if int(context[0].nonzero().max()) < 20:
                model(batch, seed)
    half = len(seen) // 2
    assert half >= 6
    for left, right in zip(seen[:half], seen[half:], strict=True):
        torch.testing.assert_close(left[0], right[0], rtol=0, atol=1e-6)
        assert torch.equal(left[1].last, right[1].last)
    targets = [inputs[1].value for inputs in seen]
    assert not torch.equal(torch.stack(targets[:half]), torch.stack(targets[half:]))


def test_training_learns_what_the_last_value_does_not_tell(make_model, batch_of):
    """From the latter half on C1 is what C2 told of the patient at first."""
    rng = np.random.default_rng(0)
    patients = []
    for i in range(32):
        side = 1.5 if i % 2 else -1.5
        events = [(60 * h, 2, side) for h in range(10)]
        events += [(60 * h, 1, rng.normal(0, 0.2)) for h in range(10)]
        events += [(60 * h, 1, side + rng.normal(0, 0.2)) for h in range(10, 16)]
        patients.append(sorted(events))
    # Ten of the rows are seen, so that the moment is where C1 changes.
    shape = {"mask": "future", "context_rows": 10, "target_rows": 6, "value_weight": 0.0}
    model = make_model(**HEAD, **shape).train()
    batch = batch_of(patients, model.config)
    FAMILY.training.fit_buffers(model, batch)
    gains = [means["future_value_gain"] for means in learn(FAMILY, model, batch, 40, 0.01)]
    assert gains[0] < 0.1
    assert gains[-1] > 0.3


def test_without_the_head_nothing_is_fitted_or_lost(make_model, make_batch, vocabulary):
    model = make_model()
    assert not [name for name in model.state_dict() if "future" in name]
    FAMILY.training.fit_buffers(model, make_batch([5]))
    assert FAMILY.training.fit_rows(model.config) == 0
    assert FAMILY.training.fit_rows(make_model(**HEAD).config) == FIT_ROWS
    assert "future_value" not in FAMILY.loss(model, make_batch([9]), {}, 0)
    axes = FAMILY.transfer.axes(make_model(**HEAD).config, vocabulary)
    assert axes["future_value.codes"].names == ("C1", "C3")
