import numpy as np
import pytest

from ehr_ray.events.grid import (
    hours_since,
    imputed,
    observations,
    scales,
    to_grid,
    vital_of_code,
)
from ehr_ray.events.options import VITALS, Vital
from ehr_ray.events.patients import Patient
from ehr_ray.events.vocabulary import Vocabulary

HOUR = 3_600_000_000
CODES = ("HR", "LAB//223761//°F", "MAP", "NIMAP", "Other")


def vocabulary(mean=(80, 98.6, 80, 90, 0), std=(10, 1.8, 10, 10, 1), count=(1, 1, 3, 1, 1), **more):
    arrays = (np.array(count), np.array(mean, float), np.array(std, float))
    return Vocabulary(CODES, *arrays, **more)


def patient(events, origin=0):
    """Events (hour, code, value); an hour of None is static."""
    time = [np.iinfo(np.int64).min if h is None else round(h * HOUR) for h, _, _ in events]
    codes = [CODES.index(code) for _, code, _ in events]
    values = np.array([value for *_, value in events], np.float32)
    return Patient(7, origin, np.array(time, np.int64), np.array(codes, np.int32), values)


def found(events, first_hour=-2, num_hours=6, origin="admission", at=0):
    return observations(
        patient(events, at),
        VITALS,
        vocabulary(),
        first_hour=first_hour,
        num_hours=num_hours,
        origin=origin,
    )


def test_hours_before_the_origin_are_kept_and_those_outside_the_window_are_not():
    events = [(None, "HR", 60), (-3, "HR", 61), (-2, "HR", 62), (-0.1, "HR", 63), (3.9, "HR", 64)]
    one = found([*events, (4, "HR", 65)])
    assert one.hour.tolist() == [0, 1, 5]
    assert one.value.tolist() == [62, 63, 64]


def test_unknown_codes_and_events_without_a_value_are_no_observations():
    assert found([(0, "Other", 5), (0, "HR", np.nan)]).hour.tolist() == []


def test_values_out_of_range_are_dropped_and_counted():
    one = found([(0, "HR", 24), (0, "HR", 25), (1, "HR", 220), (1, "HR", 221), (9, "HR", 999)])
    assert one.value.tolist() == [25, 220]
    assert one.refused == 2  # the one after the window is none of ours


def test_fahrenheit_becomes_celsius():
    one = found([(0, "LAB//223761//°F", 98.6), (1, "LAB//223761//°F", 37.5)])
    np.testing.assert_allclose(one.value, [37.0, 37.5], atol=1e-4)


def test_the_first_vital_can_be_the_origin():
    one = found([(100, "Other", 1), (101.5, "HR", 70), (103, "HR", 72)], 0, 4, "first_vital")
    assert one.hour.tolist() == [0, 1]


def test_the_usual_codes_name_each_vital_once():
    codes = [code for vital in VITALS for code in vital.codes]
    assert len(codes) == len(set(codes))
    assert vital_of_code(VITALS, vocabulary()).tolist() == [0, 6, 3, 3, -1]


def test_scales_pool_the_codes_of_a_vital_by_count():
    centre, spread = scales(VITALS, vocabulary())
    assert centre[0] == 80
    assert centre[3] == pytest.approx((3 * 80 + 90) / 4)
    assert spread[3] == pytest.approx(np.sqrt(100 + (3 * 2.5**2 + 7.5**2) / 4))
    assert (centre[6], spread[6]) == (pytest.approx(37.0), pytest.approx(1.0))


def test_a_vital_without_values_has_the_middle_of_its_range():
    centre, spread = scales(VITALS, vocabulary())
    assert (centre[1], spread[1]) == (155, 35)


def test_quantiles_keep_impossible_values_out_of_the_scale():
    quantiles = np.full((5, 7), np.nan)
    quantiles[0] = [50, 60, 73, 80, 87, 110, 10**6]
    words = vocabulary(std=(10**5, 1, 1, 1, 1), quantiles=quantiles)
    centre, spread = scales(VITALS, words)
    assert (centre[0], spread[0]) == (80, pytest.approx(14 / 1.349))


def test_a_cell_is_the_mean_of_its_observations():
    row, hour, vital = np.array([0, 0, 1]), np.array([1, 1, 2]), np.array([0, 0, 1])
    value, observed = to_grid(row, hour, vital, np.array([1.0, 3.0, 5.0]), (2, 3, 2))
    assert (value[0, 1, 0], value[1, 2, 1], value.sum()) == (2, 5, 7)
    assert observed.sum() == 2


def test_hours_since_the_last_observation_count_from_before_the_window():
    observed = np.zeros((1, 5, 1), bool)
    observed[0, 2] = True
    assert hours_since(observed, -24)[0, :, 0].tolist() == [25, 26, 0, 1, 2]
    assert hours_since(observed, 0)[0, :, 0].tolist() == [1, 2, 0, 1, 2]


def test_tiers_are_own_value_carried_value_patient_mean_cohort_mean():
    value = np.zeros((1, 6, 2), np.float32)
    observed = np.zeros((1, 6, 2), bool)
    value[0, 1, 0], value[0, 5, 0] = 4, 8
    observed[0, [1, 5], 0] = True
    filled, tier = imputed(value, observed, np.array([2, 2]), np.array([1.0, 9.0]))
    assert filled[0, :, 0].tolist() == [6, 4, 4, 4, 6, 8]
    assert tier[0, :, 0].tolist() == [3, 1, 2, 2, 3, 1]
    assert filled[0, :, 1].tolist() == [9] * 6
    assert set(tier[0, :, 1].tolist()) == {4}


def test_a_vital_is_plain_data():
    assert Vital(name="X", codes=("a",), low=0, high=1) == Vital(
        name="X", codes=("a",), low=0, high=1
    )
