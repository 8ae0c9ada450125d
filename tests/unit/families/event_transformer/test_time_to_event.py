import dataclasses

import numpy as np
import pytest
import torch
from learning import check_chunks, check_padding, learn

from ehr_ray.errors import ConfigError
from ehr_ray.families.event_transformer import time_to_event as module
from ehr_ray.families.event_transformer.family import FAMILY
from ehr_ray.families.event_transformer.time_to_event import (
    asked_moments,
    code_axes,
    fit_rates,
    truth_of,
)
from ehr_ray.nn import time_to_event as nn
from ehr_ray.nn.moment_heads import FIT_ROWS

HEAD = {
    "arch": "decoder",
    "time_to_event_weight": 1.0,
    "time_to_event_codes": 3,
    "time_to_event_bins": (1.0, 4.0),
}


@pytest.fixture
def batch_of(vocabulary, batch_of_events):
    """Batches of (minute, code) by patient."""
    return lambda patients, config: batch_of_events(FAMILY, vocabulary, config, patients, np.nan)


def by_moment(model, batch):
    """Return {patient: {minute: [(hours, event) of each code]}}."""
    index, real = asked_moments(batch, 0)
    hours, event, real = truth_of(model, batch, index, real)
    minute = module.moments(batch).gather(1, index)
    found = {}
    for row, place in real.nonzero().tolist():
        pairs = zip(hours[row, place].tolist(), event[row, place].tolist(), strict=True)
        found.setdefault(row, {})[float(minute[row, place])] = list(pairs)
    return found


def test_the_next_occurrence_is_strictly_after_and_ends_with_the_record(make_model, batch_of):
    model = make_model(**HEAD)
    events = [(None, 1), (-60, 0), (0, 0), (0, 1), (0, 0), (30, 2), (150, 1), (150, 0)]
    found = by_moment(model, batch_of([events, [(0, 0)], []], model.config))
    assert found == {
        0: {
            -60.0: [(1.0, True), (1.0, True), (1.5, True)],
            0.0: [(2.5, True), (2.5, True), (0.5, True)],
            30.0: [(2.0, True), (2.0, True), (2.0, False)],
        }
    }


@pytest.mark.parametrize("tokens", [{}, {"values": "own", "units": "own", "gaps": "own"}], ids=str)
def test_next_times_are_those_of_a_loop_however_events_become_tokens(
    tokens, make_model, make_batch, make_patient, monkeypatch
):
    model = make_model(**HEAD, **tokens)
    batch = make_batch([40, 25, 2, 0], model.config)
    found = by_moment(model, batch)
    assert len(found[0]) == 38
    for row, length in enumerate([40, 25, 2, 0]):
        patient = make_patient(length, 1 + row, 1 + row)
        end = patient.minute.max(initial=0)
        for minute, pairs in found.get(row, {}).items():
            for code, (hours, event) in enumerate(pairs):
                later = patient.minute[(patient.code == code) & (patient.minute > minute)]
                until = later.min() if len(later) else end
                assert (hours, event) == (pytest.approx((until - minute) / 60), len(later) > 0)
    monkeypatch.setattr(module, "ENTRIES", 1)
    assert by_moment(model, batch) == found


def test_a_fitted_model_starts_at_the_rates_of_train(make_model, batch_of):
    """Exponential times of 0.5 an hour, censored at the end of a day: the rate of every bin."""
    rng = np.random.default_rng(2)
    patients = []
    for _ in range(150):
        times = np.cumsum(rng.exponential(120, 60))
        events = [(0, 1), *((float(t), 0) for t in times if t < 1440), (1440.0, 2)]
        patients.append(events)
    model = make_model(**HEAD)
    batch = batch_of(patients, model.config)
    fit_rates(model, batch)
    rate = model.time_to_event.log_rate.exp()
    torch.testing.assert_close(rate[:, 0], torch.full((3,), 0.5), rtol=0.1, atol=0)
    assert (rate[:, 1] < 0.001).all()
    out = model.eval()(batch, 0)
    start = float((out["time_to_event"] / out["answers"]).detach())
    assert start == pytest.approx(float(out["time_to_event_baseline"] / out["answers"]), abs=0.05)
    model.time_to_event.codes.data.zero_()
    out = model(batch, 0)
    torch.testing.assert_close(
        out["time_to_event"], out["time_to_event_baseline"], rtol=1e-4, atol=0
    )


def test_training_finds_whose_code_comes_soon(make_model, batch_of):
    """Half of the patients have a code four times as often, and say so at first."""
    rng = np.random.default_rng(2)
    patients = []
    for i in range(12):
        often = i % 2
        times = np.cumsum(rng.exponential(60 if often else 240, 80))
        patients.append([(0, 1 + often), *((float(t), 0) for t in times if t < 1440), (1440.0, 2)])
    model = make_model(**HEAD, next_event_weight=0.0).train()
    batch = batch_of(patients, model.config)
    fit_rates(model, batch)
    gains = [means["time_to_event_gain"] for means in learn(FAMILY, model, batch, 16, 0.02)]
    assert gains[-1] > 0.03


def test_a_moment_is_told_nothing_of_what_comes_after_it(make_model, batch_of):
    model = make_model(**HEAD).eval()
    seen = []
    model.time_to_event.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    past = [(0, 0), (60, 1), (90, 2)]
    for future in ([(200, 0), (300, 1)], [(95, 2), (700, 0)]):
        batch = batch_of([past + future], model.config)
        index, real = asked_moments(batch, 0)
        model(batch, 0)
        order = index[0][real[0]].argsort()[:3]
        seen[-1] = seen[-1][0][real[0]][order]
    torch.testing.assert_close(*seen, rtol=0, atol=1e-6)


def test_chunks_change_nothing_and_every_parameter_learns(make_model, make_batch, monkeypatch):
    model = make_model(**HEAD, pooling=("attention",))
    batch = make_batch([30, 12, 1, 0], model.config)
    weight = "time_to_event.by_bin.weight"
    count = check_chunks(FAMILY, model, batch, "time_to_event", weight, nn, monkeypatch)
    assert count == (28 + 10) * 3


def test_many_moments_are_drawn_anew_by_seed_and_stay_the_patients_own(make_model, make_batch):
    model = make_model(**HEAD)
    batch = make_batch([100, 90], model.config)
    index, real = asked_moments(batch, 1)
    assert index.shape == (2, module.MOMENTS)
    assert real.all()
    alone = {k: v[1:, :90] if v.ndim > 1 else v[1:] for k, v in batch.items()}
    assert set(asked_moments(alone, 1)[0][0].tolist()) == set(index[1].tolist())
    assert set(asked_moments(batch, 2)[0][0].tolist()) != set(index[0].tolist())


def test_padding_changes_no_moment(make_model, make_batch):
    names = ("time_to_event", "time_to_event_baseline", "answers")
    check_padding(make_model(**HEAD).eval(), make_batch, names)


def test_codes_are_those_named_or_the_most_frequent(make_model, vocabulary):
    model = make_model(**{**HEAD, "time_to_event_codes": ("RASH", "HR")})
    assert model.code_slot[:3].tolist() == [1, 2, 0]
    axes = code_axes(model.config, vocabulary)
    assert axes["time_to_event.codes"].names == ("RASH", "HR")
    counted = dataclasses.replace(vocabulary, subjects=np.array([1, 5, 3]))
    assert code_axes(make_model(**HEAD).config, counted)["time_to_event.codes"].names == (
        "Lactate",
        "RASH",
        "HR",
    )
    with pytest.raises(ConfigError, match=r"model\.time_to_event_codes: 'Pulse' is no code"):
        make_model(**{**HEAD, "time_to_event_codes": ("HR", "Pulse")})


def test_without_the_head_nothing_is_fitted(make_model, make_batch):
    model = make_model(arch="decoder")
    FAMILY.training.fit_buffers(model, make_batch([5], model.config))
    assert FAMILY.training.fit_rows(model.config) == 0
    assert FAMILY.training.fit_rows(make_model(**HEAD).config) == FIT_ROWS
    assert "time_to_event" not in FAMILY.loss(model, make_batch([9], model.config), {}, 0)
