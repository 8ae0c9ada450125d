import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehr_ray.config.schedules import Constant, Cycle, Ramp


def test_a_constant_never_changes():
    assert [Constant(value=0.3).at(s, 10) for s in (0, 5, 10**9)] == [0.3] * 3


def test_a_ramp_goes_from_start_to_end_and_stays():
    ramp = Ramp(start=1.0, end=3.0, steps=4)
    assert [ramp.at(s, 100) for s in (0, 1, 2, 4, 5, 1000)] == [1.0, 1.5, 2.0, 3.0, 3.0, 3.0]


def test_epochs_are_counted_in_steps_of_the_data():
    assert Ramp(end=1.0, epochs=2).at(5, 10) == 0.25
    assert Ramp(end=1.0, epochs=0.5).at(5, 10) == 1.0


def test_a_cosine_ramp_is_slow_at_both_ends():
    ramp = Ramp(end=1.0, steps=4, shape="cosine")
    expected = [(1 - math.cos(math.pi * s / 4)) / 2 for s in range(5)]
    assert [ramp.at(s, 1) for s in range(5)] == pytest.approx(expected)
    assert ramp.at(1, 1) < 0.25


def test_a_cycle_repeats_ramp_and_hold():
    cycle = Cycle(end=1.0, steps=4, ramp_ratio=0.5)
    assert [cycle.at(s, 1) for s in range(9)] == [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 0.0]


def test_a_period_is_in_steps_whatever_the_length_was_given_in():
    assert Cycle(end=1.0, steps=4).period(10) == 4
    assert Cycle(end=1.0, epochs=2.5).period(10) == 25


def test_a_cycle_stays_at_its_end_after_its_last_period():
    cycle = Cycle(start=0.2, end=1.0, epochs=1, cycles=2)
    assert cycle.at(4, 4) == 0.2
    assert [cycle.at(s, 4) for s in (8, 9, 100)] == [1.0] * 3


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [(Ramp, {"steps": 1, "epochs": 1}), (Cycle, {"steps": 1, "epochs": 1}), (Cycle, {})],
)
def test_at_most_one_length_is_given_and_to_a_cycle_exactly_one(kind, lengths):
    with pytest.raises(ValueError, match="either steps or epochs"):
        kind(end=1.0, **lengths)


def test_a_ramp_without_a_length_lasts_as_long_as_the_run():
    ramp = Ramp(start=0.0, end=1.0)
    assert [ramp.at(5, 1, run_steps=total) for total in (5, 10, 20)] == [1.0, 0.5, 0.25]


@given(st.integers(0, 10**6), st.integers(1, 1000), st.sampled_from(["linear", "cosine"]))
def test_values_stay_between_start_and_end(step, length, shape):
    for schedule in (
        Ramp(start=0.5, end=-2.0, steps=length, shape=shape),
        Cycle(start=0.5, end=-2.0, steps=length, ramp_ratio=0.3),
    ):
        assert -2.0 <= schedule.at(step, 7) <= 0.5


def test_a_cycle_may_wait_before_it_ramps():
    cycle = Cycle(start=0.2, end=1.0, steps=100, wait_ratio=0.7, ramp_ratio=0.1)
    assert [round(cycle.at(step, 1), 6) for step in (0, 70, 75, 80, 99, 100)] == [
        0.2,
        0.2,
        0.6,
        1.0,
        1.0,
        0.2,
    ]
    with pytest.raises(ValueError, match="at most 1"):
        Cycle(end=1.0, steps=10, wait_ratio=0.7, ramp_ratio=0.5)
