import numpy as np
import pytest
import torch
from learning import check_chunks, check_padding, learn

from ehr_ray.errors import ConfigError
from ehr_ray.families.event_transformer import time_to_event
from ehr_ray.families.event_transformer.family import FAMILY
from ehr_ray.families.event_transformer.future_value import fit_values, value_axes, values_of
from ehr_ray.nn import future_value as nn
from ehr_ray.nn.moment_heads import FIT_ROWS

HOURS = (2.0, 5.0)
HEAD = {
    "arch": "decoder",
    "future_value_weight": 1.0,
    "future_value_codes": 3,
    "future_value_hours": HOURS,
}


@pytest.fixture
def batch_of(vocabulary, batch_of_events):
    """Batches of (minute, code, value) by patient."""
    return lambda patients, config: batch_of_events(FAMILY, vocabulary, config, patients, np.nan)


def by_moment(model, batch):
    """Return {patient: {minute: (value, asked, last, known)}}."""
    index, real = time_to_event.asked_moments(batch, 0)
    truth = values_of(model, batch, index, real)
    minute = time_to_event.moments(batch).gather(1, index)
    assert not truth.asked[~real].any()
    found = {}
    for row, place in real.nonzero().tolist():
        parts = tuple(part[row, place].tolist() for part in truth)
        found.setdefault(row, {})[float(minute[row, place])] = parts
    return found


def test_windows_begin_after_the_moment_and_hold_their_end(make_model, batch_of, vocabulary):
    model = make_model(**HEAD)
    assert model.value_slot[:3].tolist() == [0, 1, 2]  # RASH has no values
    low, high = (float(vocabulary.location[0] + z * vocabulary.scale[0]) for z in (-1, 1))
    events = [(None, 1, 5.0), (0, 0, high), (0, 0, low), (120, 0, high), (120, 2), (121, 0, low)]
    batch = batch_of([[*events, (300, 0), (600, 1, 5.0)]], model.config)
    found = by_moment(model, batch)[0]
    assert {minute: len(parts[0]) for minute, parts in found.items()} == {
        0.0: 2, 120.0: 2, 121.0: 2, 300.0: 2
    }  # fmt: skip
    value, asked, last, known = found[0.0]
    assert asked == [[True, False], [True, False]]
    assert value == [[1.0, 0.0], [-1.0, 0.0]]
    assert (last, known) == ([-1.0, 0.0], [True, True])
    assert found[120.0][0:3] == ([[-1.0, 0.0], [0.0, 0.0]], [[True, False], [False] * 2], [1.0, 0])
    assert found[300.0][1] == [[False, False], [False, True]]


@pytest.mark.parametrize("tokens", [{}, {"values": "own", "units": "own", "gaps": "own"}], ids=str)
def test_values_are_those_of_a_loop_however_events_become_tokens(
    tokens, make_model, make_batch, make_patient, vocabulary, monkeypatch
):
    model = make_model(**HEAD, **tokens)
    batch = make_batch([40, 25, 2, 0], model.config)
    found = by_moment(model, batch)
    assert len(found[0]) == 38
    for row, length in enumerate([40, 25, 2, 0]):
        patient = make_patient(length, 1 + row, 1 + row)
        score = (patient.value - vocabulary.location[patient.code]) / vocabulary.scale[patient.code]
        for minute, (value, asked, last, known) in found.get(row, {}).items():
            for code in range(2):
                mine = patient.code == code
                past = score[mine & (patient.minute <= minute)]
                assert known[code] == bool(len(past))
                assert last[code] == pytest.approx(past[-1] if len(past) else 0, abs=3e-3)
                for k, (start, end) in enumerate(zip((0.0, *HOURS), HOURS, strict=False)):
                    hours = (patient.minute - minute) / 60
                    there = score[mine & (hours > start) & (hours <= end)]
                    assert asked[k][code] == bool(len(there))
                    wanted = there.mean() if len(there) else 0
                    assert value[k][code] == pytest.approx(wanted, abs=3e-3)
    monkeypatch.setattr(nn, "ENTRIES", 1)
    assert by_moment(model, batch) == found


def test_a_target_is_told_nothing_of_what_is_after_its_window_or_before_it(make_model, batch_of):
    model = make_model(**HEAD)
    events = [(60.0 * hour, hour % 2, 5.0 + (hour % 7)) for hour in range(20)]
    index, real = torch.tensor([[8]]), torch.ones(1, 1, dtype=torch.bool)
    truths = []
    for changed in ([], range(8), range(14, 20), [10]):
        given = [
            (minute, code, value + 1) if place in changed else (minute, code, value)
            for place, (minute, code, value) in enumerate(events)
        ]
        truths.append(values_of(model, batch_of([given], model.config), index, real))
    base, before, after, inside = (truth.value for truth in truths)
    assert truths[0].asked.all()
    assert torch.equal(base, before)
    assert torch.equal(base, after)
    assert not torch.equal(base, inside)


def test_a_prediction_is_told_nothing_of_what_comes_after_its_moment(make_model, batch_of):
    model = make_model(**HEAD).eval()
    seen = []
    model.future_value.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    past, told = [(0, 0, 50.0), (60, 1, 5.0), (90, 2)], []
    for future in ([(200, 0, 90.0), (300, 1, 2.0)], [(95, 2), (700, 0, 1.0)]):
        batch = batch_of([past + future], model.config)
        index, real = time_to_event.asked_moments(batch, 0)
        model(batch, 0)
        order = index[0][real[0]].argsort()[:3]
        told.append(model.future_value.normal(seen[-1][0][real[0]][order]))
    for left, right in zip(*told, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-6)


def test_a_fitted_model_starts_at_what_train_has(make_model, batch_of):
    rng = np.random.default_rng(2)
    level = rng.normal(50, 20, 60)
    patients = [[(60.0 * hour, 0, one + rng.normal(0, 5)) for hour in range(20)] for one in level]
    model = make_model(**HEAD)
    batch = batch_of(patients, model.config)
    fit_values(model, batch)
    head = model.future_value
    slope, _, log_scale = head.carried[:, :, 0]
    assert (slope > 0.8).all()
    assert (log_scale < head.log_scale[:, 0] - 0.5).all()
    head.codes.data.zero_()
    out = model.eval()(batch, 0)
    index, real = time_to_event.asked_moments(batch, 0)
    truth = values_of(model, batch, index, real)
    shape = truth.value.shape
    nats = nn.negative_log_density(truth.value, head.mean.expand(shape), head.log_scale)
    torch.testing.assert_close(out["future_value"], (nats * truth.asked).sum())
    assert out["future_value_baseline"] < out["future_value"]


def test_training_learns_what_the_last_value_does_not_tell(make_model, batch_of):
    """A value turns at six hours to the side that another code has told; the last one says none."""
    rng = np.random.default_rng(3)
    patients = []
    for i in range(24):
        side = 1 if i % 2 else -1
        events = [(0, 1, 5.0 + 3 * side)]
        events += [(60.0 * h, 0, 50 + rng.normal(0, 3)) for h in range(1, 4)]
        events += [(60.0 * h, 0, 50 + 30 * side + rng.normal(0, 3)) for h in range(4, 8)]
        patients.append(events)
    model = make_model(**HEAD, next_event_weight=0.0).train()
    batch = batch_of(patients, model.config)
    fit_values(model, batch)
    gains = [means["future_value_gain"] for means in learn(FAMILY, model, batch, 80, 0.01)]
    assert gains[0] < 0.1
    assert gains[-1] > 0.3


def test_chunks_change_nothing_and_every_parameter_learns(make_model, make_batch, monkeypatch):
    model = make_model(**HEAD, pooling=("attention",))
    batch = make_batch([30, 12, 1, 0], model.config)
    weight = "future_value.by_window.weight"
    count = check_chunks(FAMILY, model, batch, "future_value", weight, nn, monkeypatch)
    assert count == float(FAMILY.training.counts(model, batch, 0)["future_value"]) > 0


def test_padding_changes_no_moment(make_model, make_batch):
    names = ("future_value", "future_value_baseline", "values")
    check_padding(make_model(**HEAD).eval(), make_batch, names)


def test_codes_are_those_named_or_the_most_frequent_with_values(make_model, vocabulary):
    model = make_model(**{**HEAD, "future_value_codes": ("Lactate", "HR")})
    assert model.value_slot[:3].tolist() == [1, 0, 2]
    axes = value_axes(model.config, vocabulary)
    assert axes["future_value.codes"].names == ("Lactate", "HR")
    frequent = value_axes(make_model(**HEAD).config, vocabulary)["future_value.codes"].names
    assert frequent == ("HR", "Lactate")
    with pytest.raises(ConfigError, match=r"model\.future_value_codes: 'RASH' has no values"):
        make_model(**{**HEAD, "future_value_codes": ("HR", "RASH")})


def test_times_and_values_are_asked_side_by_side(make_model, make_batch):
    """The same moments, so that each is what it is alone with the same weights."""
    model = make_model(**HEAD, time_to_event_weight=1.0).eval()
    batch = make_batch([30, 7], model.config)
    both = model(batch, 3)
    for weight in ("time_to_event", "future_value"):
        alone = make_model(arch="decoder", **{f"{weight}_weight": 1.0}, **(
            {"future_value_codes": 3, "future_value_hours": HOURS} if weight == "future_value"
            else {}
        ))  # fmt: skip
        alone.load_state_dict(model.state_dict(), strict=False)
        torch.testing.assert_close(alone.eval()(batch, 3)[weight], both[weight])


def test_without_the_head_nothing_is_fitted_or_lost(make_model, make_batch, vocabulary):
    model = make_model(arch="decoder")
    assert not [name for name in model.state_dict() if "future" in name or "value_slot" in name]
    FAMILY.training.fit_buffers(model, make_batch([5], model.config))
    assert FAMILY.training.fit_rows(make_model(**HEAD).config) == FIT_ROWS
    assert value_axes(model.config, vocabulary) == {}
    assert "future_value" not in FAMILY.loss(model, make_batch([9], model.config), {}, 0)
