import dataclasses

import numpy as np
import pytest

from ehr_ray.events.options import RECURRENCE_2Y, SURVIVAL_5Y
from ehr_ray.events.outcomes import (
    CENSORED,
    COMPETING,
    EVENT,
    censoring,
    censoring_weights,
    follow,
    had_event,
    kaplan_meier,
    labels_at,
    step,
)

DAYS = np.array([100.0, 900, 100, 100, 900, 730, np.nan])
STATE = np.array([EVENT, EVENT, CENSORED, COMPETING, COMPETING, CENSORED, CENSORED], np.int8)


def test_late_events_are_negatives_and_early_losses_are_unknown():
    answer = had_event(DAYS, STATE, RECURRENCE_2Y)
    assert answer.tolist() == [1, 0, -1, 0, 0, 0, -1]


def test_a_competing_death_is_unknown_where_it_is_asked_for():
    outcome = dataclasses.replace(RECURRENCE_2Y, competing_death="unknown")
    assert had_event(DAYS, STATE, outcome).tolist() == [1, 0, -1, -1, 0, 0, -1]


def test_the_positive_class_of_survival_is_to_live():
    assert SURVIVAL_5Y.positive == "no event"
    label = labels_at(np.array([10.0, 4000, 10]), np.array([1, 0, 0], np.int8), SURVIVAL_5Y)
    assert label.tolist() == [0, 1, -1]
    assert "no event within 1825 days" in SURVIVAL_5Y.describes


def test_the_first_event_counts_and_the_last_sight_ends():
    codes = ["FOLLOW_UP//END", "RECURRENCE", "RECURRENCE", "MEDS_DEATH"]
    days = np.array([500.0, 300, 200, 500])
    assert follow(days, codes, RECURRENCE_2Y) == (200.0, EVENT)
    assert follow(days[[0, 3]], [codes[0], codes[3]], RECURRENCE_2Y) == (500.0, COMPETING)
    assert follow(days[:1], codes[:1], RECURRENCE_2Y) == (500.0, CENSORED)
    nothing, state = follow(np.zeros(0), [], RECURRENCE_2Y)
    assert np.isnan(nothing)
    assert state == CENSORED


def test_kaplan_meier_of_a_textbook_sample():
    """Times 1, 2+, 3, 3, 4+: survival 4/5 after 1, then 4/5 * 1/3 after 3."""
    times, survival = kaplan_meier(np.array([1.0, 2, 3, 3, 4]), np.array([1, 0, 1, 1, 0], bool))
    assert times.tolist() == [1, 3]
    np.testing.assert_allclose(survival, [0.8, 0.8 / 3])
    at = step(times, survival, np.array([0.5, 1, 3]), before=True)
    np.testing.assert_allclose(at, [1, 1, 0.8])


def test_weights_of_the_known_stand_for_all_that_were_lost():
    """Of exponential times the weighted share with an event is the true one; the known's is not."""
    rng = np.random.default_rng(0)
    event, lost = rng.exponential(2000, 4000), rng.exponential(900, 4000)
    days = np.minimum(event, lost)
    state = np.where(event <= lost, EVENT, CENSORED).astype(np.int8)
    answer = had_event(days, state, RECURRENCE_2Y)
    weight = censoring_weights(days, state, RECURRENCE_2Y, censoring(days, state, RECURRENCE_2Y))
    truth = 1 - np.exp(-730 / 2000)
    assert np.all((weight > 0) == (answer >= 0))
    assert weight.sum() == pytest.approx(4000, rel=0.03)
    assert np.average(answer == 1, weights=weight) == pytest.approx(truth, abs=0.02)
    assert abs((answer[answer >= 0] == 1).mean() - truth) > 0.05


def test_of_equal_days_an_event_comes_before_a_loss_in_the_weights():
    """By hand: five at risk, an event and a loss on day 2, a loss on day 3, two seen to the end.

    Who has the event on day 2 cannot be lost then, so G(2) = 3/4 and G(3) = 3/4 * 2/3 = 1/2.
    """
    days = np.array([2.0, 2, 3, 900, 900])
    state = np.array([EVENT, CENSORED, CENSORED, CENSORED, CENSORED], np.int8)
    curve = censoring(days, state, RECURRENCE_2Y)
    np.testing.assert_allclose(curve[1][:2], [3 / 4, 1 / 2])
    weight = censoring_weights(days, state, RECURRENCE_2Y, curve)
    np.testing.assert_allclose(weight, [1, 0, 0, 2, 2])
    assert weight.sum() == pytest.approx(5)


def test_an_event_at_day_zero_is_an_event():
    days, codes = np.array([0.0, 900]), ["RECURRENCE", "FOLLOW_UP//END"]
    assert follow(days, codes, RECURRENCE_2Y) == (0, EVENT)
    assert had_event(np.zeros(1), np.array([EVENT]), RECURRENCE_2Y).tolist() == [1]
